# Starting and stopping servers in private folders; part of scripts/services.
#
# A server's folder holds `port`, `pid` and `log`. Its port is chosen once, so that what was killed comes back at the same
# address; its pid is believed only while that process still is the program that was started there.

# Seconds that a server may take to answer.
PATIENCE=60

start_server() {
    local kind=$1 dir=$2
    shift 2
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    case $kind in
        redis)
            run_redis "$dir" "$@"
            printf 'redis://127.0.0.1:%s\n' "$(cat "$dir/port")"
            ;;
        redis-cluster) run_redis_cluster "$dir" "$@" ;;
        kafka)
            run_kafka "$dir" "$@"
            printf '127.0.0.1:%s\n' "$(cat "$dir/port")"
            ;;
        *) fail "there is no server \"$kind\" here; known are: redis, redis-cluster, kafka" ;;
    esac
}

# Free ports of loopback below the ones that outgoing connections take.
free_ports() {
    python3 - "$@" <<'PY'
import random, socket, sys
count, bus = int(sys.argv[1]), len(sys.argv) > 2
found = []
while len(found) < count:
    port = random.randrange(12000, 22000)
    held = []
    try:
        for wanted in [port, port + 10000] if bus else [port]:
            s = socket.socket()
            held.append(s)
            s.bind(("127.0.0.1", wanted))
        if port not in found:
            found.append(port)
    except OSError:
        pass
    finally:
        for s in held:
            s.close()
print(*found)
PY
}

# When a process began, in clock ticks: with its pid, that tells it from a later one.
began() { sed 's/.*) //; /^[ZX]/d' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }

# alive DIR: whether the process that was started in a folder still runs.
alive() {
    local pid start
    read -r pid start 2>/dev/null <"$1/started" || return 1
    [ -n "$start" ] && [ "$(began "$pid")" = "$start" ]
}

# still_alive DIR: what was killed a moment ago may take another to be gone.
still_alive() { alive "$1" && sleep 0.3 && alive "$1"; }

# launch DIR COMMAND...: starts it away from our own output, so that whoever reads that sees its end.
launch() {
    local dir=$1
    shift
    (
        cd "$dir"
        exec setsid "$@" </dev/null >>"$dir/log" 2>&1 9>&-
    ) &
    printf '%s' $! >"$dir/pid"
    printf '%s %s\n' $! "$(began $!)" >"$dir/started"
    # setsid keeps the pid of a shell that is no group leader.
    disown
    if [ -n "${TIDEGATE_SERVICES_PARENT:-}" ]; then
        watch_parent "$TIDEGATE_SERVICES_PARENT" "$(cat "$dir/pid")"
    fi
}

# Ends a server when the process it was started for is gone.
watch_parent() {
    (
        exec </dev/null >/dev/null 2>&1 9>&-
        while kill -0 "$2" && kill -0 "$1"; do sleep 1; done
        kill -9 "$2"
    ) &
    disown
}

# until_answers DIR WHAT COMMAND...
until_answers() {
    local dir=$1 what=$2 end=$((SECONDS + PATIENCE))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ] || ! kill -0 "$(cat "$dir/pid")" 2>/dev/null; then
            tail -n 20 "$dir/log" >&2
            fail "$what in $dir does not answer; the end of its log is above."
        fi
        sleep 0.05
    done
}

redis_answers() { [ "$(redis-cli -p "$1" "${@:2}" ping 2>&1)" = PONG ] || redis-cli -p "$1" "${@:2}" ping 2>&1 | grep -q NOAUTH; }

# A server that has just been killed may not have let go of its port.
run_redis() {
    local dir=$1
    shift
    still_alive "$dir" && return
    [ -s "$dir/port" ] || free_ports 1 >"$dir/port"
    launch "$dir" redis-server --port "$(cat "$dir/port")" --bind 127.0.0.1 --dir "$dir" --save "" \
        --shutdown-timeout 0 "$@"
    until_answers "$dir" redis redis_answers "$(cat "$dir/port")"
}

# Three masters and a replica of each.
run_redis_cluster() {
    local dir=$1 node ports port
    shift
    if [ ! -s "$dir/ports" ]; then
        free_ports 6 bus >"$dir/ports"
    fi
    read -r -a ports <"$dir/ports"
    for node in 1 2 3 4 5 6; do
        mkdir -p "$dir/node-$node"
        printf '%s' "${ports[node - 1]}" >"$dir/node-$node/port"
        run_redis "$dir/node-$node" --cluster-enabled yes --cluster-node-timeout 1500 --appendonly yes \
            --cluster-replica-validity-factor 0 "$@"
    done
    if [ ! -e "$dir/whole" ]; then
        redis-cli --cluster create "${ports[@]/#/127.0.0.1:}" --cluster-replicas 1 --cluster-yes >"$dir/create.log" 2>&1 ||
            fail "the cluster could not be made: $(tail -n 3 "$dir/create.log")"
        for port in "${ports[@]}"; do
            until_answers "$dir/node-1" "the cluster" cluster_is_whole "$port"
        done
        touch "$dir/whole"
    fi
    printf 'redis://127.0.0.1:%s' "${ports[0]}"
    printf ',redis://127.0.0.1:%s' "${ports[@]:1}"
    printf '\n'
}

# All slots are served, and every replica follows its master.
cluster_is_whole() {
    redis-cli -p "$1" cluster info | grep -q cluster_state:ok || return 1
    [ "$(redis-cli -p "$1" cluster nodes | grep -c ' connected')" -eq 6 ] || return 1
    ! redis-cli -p "$1" info replication | grep -q master_link_status:down
}

# Broker and controller in one process; settings may be given as key=value.
run_kafka() {
    local dir=$1 libs port controller setting
    shift
    still_alive "$dir" && return
    libs=$(kafka_libs)
    [ -d "$libs" ] || fail "Apache Kafka is not there yet. Please run: scripts/services kafka"
    [ -s "$dir/ports" ] || free_ports 2 >"$dir/ports"
    read -r port controller <"$dir/ports"
    printf '%s' "$port" >"$dir/port"
    if [ ! -s "$dir/server.properties" ]; then
        cat >"$dir/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
log.dirs=$dir/data
num.partitions=3
offsets.topic.num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.cleaner.backoff.ms=500
num.network.threads=2
num.io.threads=2
PROPERTIES
        for setting in "$@"; do
            sed -i "/^${setting%%=*}=/d" "$dir/server.properties"
            printf '%s\n' "$setting" >>"$dir/server.properties"
        done
    fi
    if [ ! -e "$dir/formatted" ]; then
        kafka_tool kafka-storage format -t dGlkZWdhdGUtdGVzdHMtMQ -c "$dir/server.properties" >>"$dir/log" 2>&1 || {
            tail -n 5 "$dir/log" >&2
            fail "Kafka's folder could not be made; the end of its log is above."
        }
        touch "$dir/formatted"
    fi
    launch "$dir" java -Xmx512m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$libs/*" kafka.Kafka "$dir/server.properties"
    until_answers "$dir" kafka kafka_answers "$port"
}

# Asks for the API's versions, which a broker answers once it serves.
kafka_answers() {
    python3 - "$1" <<'PY'
import socket, struct, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
s.settimeout(2)
name = b"probe"
body = struct.pack(">hhih", 18, 0, 7, len(name)) + name
s.sendall(struct.pack(">i", len(body)) + body)
size = struct.unpack(">i", s.recv(4))[0]
sys.exit(0 if size > 8 and struct.unpack(">ih", s.recv(6)) == (7, 0) else 1)
PY
}

kafka_tool() {
    local class libs
    libs=$(kafka_libs)
    [ -d "$libs" ] || fail "Apache Kafka is not there yet. Please run: scripts/services kafka"
    case $1 in
        kafka-topics) class=org.apache.kafka.tools.TopicCommand ;;
        kafka-console-consumer) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
        kafka-console-producer) class=org.apache.kafka.tools.ConsoleProducer ;;
        kafka-get-offsets) class=org.apache.kafka.tools.GetOffsetShell ;;
        kafka-configs) class=kafka.admin.ConfigCommand ;;
        kafka-storage) class=kafka.tools.StorageTool ;;
        kafka-transactions) class=org.apache.kafka.tools.TransactionsCommand ;;
        *.*) class=$1 ;;
        *) fail "there is no tool \"$1\" here; known are kafka-topics, kafka-console-consumer, kafka-console-producer, kafka-get-offsets, kafka-configs, kafka-storage, kafka-transactions, and any class by its name" ;;
    esac
    shift
    java -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
        -cp "$libs/*" "$class" "$@"
}

stop_servers() {
    local pid dir end
    [ -d "$1" ] || fail "there is no folder $1"
    while read -r pid; do
        dir=$(cd "$(dirname "$pid")" && pwd)
        alive "$dir" || continue
        kill "$(cat "$dir/pid")" 2>/dev/null || true
        end=$((SECONDS + 20))
        while alive "$dir"; do
            if [ $SECONDS -ge $end ]; then
                kill -9 "$(cat "$dir/pid")" 2>/dev/null || true
            fi
            sleep 0.05
        done
        rm -f "$dir/pid" "$dir/started"
    done < <(find "$1" -name pid -type f)
}
