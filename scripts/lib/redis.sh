# Redis and Redis Cluster; part of scripts/services.

redis_ports() { pick_ports 1 ${CLUSTER:+bus} >"$1/port"; }

redis_launch() {
    local dir=$1
    shift
    programs redis-server redis-cli || fail "Redis is not there yet. Please run: scripts/services redis"
    # Nothing is kept but what the options say, and nobody is waited for when it stops.
    launch "$dir" "$dir" redis-server --port "$(cat "$dir/port")" --bind 127.0.0.1 --dir "$dir" --save "" \
        --shutdown-timeout 0 "$@"
}

# One that wants a password answers too.
redis_serves() {
    local port
    port=$(cat "$1/port")
    case $(timeout 2 redis-cli -p "$port" ping 2>&1) in
        PONG | *NOAUTH*) listens "$1" "$port" ;;
        *) return 1 ;;
    esac
}

# Three masters, and a replica of each.
bring_up_redis_cluster() {
    local dir=$1 CLUSTER=yes node port ports=() end
    shift
    for node in 1 2 3 4 5 6; do
        # Each keeps its own log of writes: a master that comes back empty would have its replica forget everything too.
        bring_up redis "$dir/node-$node" --cluster-enabled yes --cluster-node-timeout 1500 --appendonly yes \
            --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0 "$@"
        ports+=("$(cat "$dir/node-$node/port")")
    done
    if [ ! -e "$dir/whole" ]; then
        # What was cut short is made anew.
        for port in "${ports[@]}"; do
            redis-cli -p "$port" cluster reset hard >/dev/null
        done
        redis-cli --cluster create "${ports[@]/#/127.0.0.1:}" --cluster-replicas 1 --cluster-yes \
            >"$dir/create.log" 2>&1 || {
            tail -n 5 "$dir/create.log" >&2
            fail "the cluster in $dir could not be made; the reason is above."
        }
    fi
    end=$((SECONDS + PATIENCE))
    for port in "${ports[@]}"; do
        until cluster_is_whole "$port"; do
            if [ $SECONDS -ge $end ]; then
                redis-cli -p "$port" cluster nodes >&2
                fail "the cluster in $dir does not come together; how its node at $port sees it is above."
            fi
            sleep 0.05
        done
    done
    touch "$dir/whole"
    printf 'redis://127.0.0.1:%s' "${ports[0]}"
    printf ',redis://127.0.0.1:%s' "${ports[@]:1}"
    printf '\n'
}

# Whether one node has all slots served, sees three masters and three replicas, none of them failing, and has a replica
# that follows, or is one.
cluster_is_whole() {
    local replication
    redis-cli -p "$1" cluster info | grep -q '^cluster_state:ok' || return 1
    redis-cli -p "$1" cluster nodes | awk '
        $3 ~ /fail|handshake|noaddr/ || $8 != "connected" { bad = 1 }
        $3 ~ /master/ && NF > 8 { masters++ }
        $3 ~ /slave/ { replicas++ }
        END { exit !(!bad && masters == 3 && replicas == 3) }' || return 1
    replication=$(redis-cli -p "$1" info replication)
    case $replication in
        *role:master*state=online* | *master_link_status:up*) ;;
        *) return 1 ;;
    esac
}
