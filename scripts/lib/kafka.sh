# Apache Kafka: one process that is broker and controller; part of scripts/services.

# A small heap and an early start matter more here than speed later.
JVM=(-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -Dorg.slf4j.simpleLogger.showDateTime=true
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS")

# Where its jars are, one folder for each version.
kafka_libs() {
    local version
    if [ -n "${KAFKA_AT:-}" ]; then
        printf '%s' "$KAFKA_AT"
        return
    fi
    version=$(sed -n 's/.*<kafka.version>\(.*\)<.*/\1/p' "$HERE/kafka/pom.xml")
    printf '%s/kafka/kafka-%s' "$SERVICES" "$version"
}

# The first Java that is new enough for Kafka; the one on the PATH may be older.
java_17() {
    local java version
    for java in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(type -P java)" /usr/lib/jvm/*/bin/java; do
        if [ -x "$java" ]; then
            version=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
            if [ "${version:-0}" -ge 17 ]; then
                printf '%s' "$java"
                return
            fi
        fi
    done
    return 1
}

# The jars by names without folder, for a Java that is started among them: so the archive of classes fits wherever the
# folder is.
class_path() {
    local jars
    jars=$(cd "$1" && printf '%s:' *.jar)
    printf '%s' "${jars%:}"
}

kafka_ports() {
    local port controller
    read -r port controller < <(pick_ports 2)
    printf '%s' "$controller" >"$1/controller-port"
    printf '%s' "$port" >"$1/port"
}

kafka_launch() {
    local dir=$1 libs java name setting
    shift
    libs=$(kafka_libs)
    if ! java=$(java_17) || [ ! -d "$libs" ]; then
        fail "Apache Kafka is not there yet. Please run: scripts/services kafka"
    fi
    # What is given stays given for the next start in this folder.
    touch "$dir/settings"
    for setting in "$@"; do
        [[ $setting = *=* ]] || fail "\"$setting\" is no setting of Kafka; it must be like key=value."
        name=${setting%%=*}
        { grep -v "^${name//./\\.}=" "$dir/settings" || true; } >"$dir/settings.new"
        printf '%s\n' "$setting" >>"$dir/settings.new"
        mv "$dir/settings.new" "$dir/settings"
    done
    kafka_properties "$dir" >"$dir/server.properties"
    # The last of two lines for the same key holds.
    cat "$dir/settings" >>"$dir/server.properties"
    if [ ! -e "$dir/data/meta.properties" ]; then
        mkdir -p "$dir/data"
        cp "$libs/formatted/bootstrap.checkpoint" "$dir/data/"
        cp "$libs/formatted/meta.properties" "$dir/data/"
    fi
    launch "$dir" "$libs" "$java" -Xms64m -Xmx512m "${JVM[@]}" "${KAFKA_ARCHIVE:--XX:SharedArchiveFile=broker.jsa}" \
        "-XX:ErrorFile=$dir/crash.%p" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$(class_path "$libs")" \
        kafka.Kafka "$dir/server.properties"
}

# Compaction, retention and the loss of a client are to be seen within a test, and a broker that was killed is to be let
# in again soon: its controller waits until the session of the killed one is over.
kafka_properties() {
    local port controller
    port=$(cat "$1/port")
    controller=$(cat "$1/controller-port")
    cat <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
log.dirs=$1/data
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
num.network.threads=2
num.io.threads=2
num.partitions=3
auto.create.topics.enable=false
offsets.topic.num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
log.initial.task.delay.ms=500
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=8388608
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
PROPERTIES
}

# Whether it has been let in: asked for the brokers, it names itself. (A request for metadata of no topic, and the first
# 12 bytes of the answer, of which the last four are their number.)
kafka_serves() {
    local port answer
    port=$(cat "$1/port")
    answer=$(
        { exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || exit 0
        printf '\0\0\0\x13\0\x03\0\x01\0\0\0\x07\0\x05probe\0\0\0\0' >&3
        timeout 2 head -c 12 <&3 | od -An -v -tx1 | tr -d ' \n'
    )
    [[ $answer = ????????0000000700000001 ]] && listens "$1" "$port"
}

# Takes our place, so that whoever ends us ends the tool.
kafka_tool() {
    local class libs java
    libs=$(kafka_libs)
    if ! java=$(java_17) || [ ! -d "$libs" ]; then
        fail "Apache Kafka is not there yet. Please run: scripts/services kafka"
    fi
    case $1 in
        kafka-topics) class=org.apache.kafka.tools.TopicCommand ;;
        kafka-console-consumer) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
        kafka-console-producer) class=org.apache.kafka.tools.ConsoleProducer ;;
        kafka-consumer-groups) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
        kafka-get-offsets) class=org.apache.kafka.tools.GetOffsetShell ;;
        kafka-delete-records) class=org.apache.kafka.tools.DeleteRecordsCommand ;;
        kafka-configs) class=kafka.admin.ConfigCommand ;;
        kafka-transactions) class=org.apache.kafka.tools.TransactionsCommand ;;
        kafka-storage) class=kafka.tools.StorageTool ;;
        kafka-dump-log) class=org.apache.kafka.tools.DumpLogSegments ;;
        *.*) class=$1 ;;
        *) fail "there is no tool \"$1\" here; known are kafka-topics, kafka-console-consumer, kafka-console-producer, kafka-consumer-groups, kafka-get-offsets, kafka-delete-records, kafka-configs, kafka-transactions, kafka-storage, kafka-dump-log, and any class by its whole name." ;;
    esac
    shift
    exec "$java" -Xmx256m "${JVM[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$libs/*" "$class" "$@"
}

# prepare_kafka JARS: what every start would have to do otherwise: a data folder that is formatted, and the broker's
# classes as Java holds them, which takes a second off each start. Without those it starts all the same.
prepare_kafka() {
    # shellcheck disable=SC2034
    local KAFKA_AT=$1 KAFKA_ARCHIVE=-XX:ArchiveClassesAtExit=broker.jsa TIDEGATE_SERVICES_PARENT=$$ dir
    watched_parent
    dir=$(mktemp -d "$SERVICES/kafka/fresh.XXXXXX")
    kafka_ports "$dir"
    kafka_properties "$dir" >"$dir/server.properties"
    if ! (kafka_tool kafka-storage format -t dGlkZWdhdGUtdGVzdHMtMQ -c "$dir/server.properties") >"$dir/log" 2>&1; then
        tail -n 20 "$dir/log" >&2
        fail "Kafka's data folder could not be made; the reason is above."
    fi
    mkdir "$KAFKA_AT/formatted"
    cp "$dir/data/meta.properties" "$dir/data/bootstrap.checkpoint" "$KAFKA_AT/formatted/"
    bring_up kafka "$dir"
    STOPPING=$PATIENCE stop_servers "$dir"
    rm -rf "$dir"
}
