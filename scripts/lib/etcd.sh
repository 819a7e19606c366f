# etcd, one member; part of scripts/services.

# One port for clients and one for other members, of which there are none.
etcd_ports() {
    local client peer
    read -r client peer < <(pick_ports 2)
    printf '%s' "$peer" >"$1/peer-port"
    printf '%s' "$client" >"$1/port"
}

etcd_launch() {
    local dir=$1 client peer
    shift
    programs etcd || fail "etcd is not there yet. Please run: scripts/services etcd"
    client=http://127.0.0.1:$(cat "$dir/port")
    peer=http://127.0.0.1:$(cat "$dir/peer-port")
    # It takes settings from the environment too, which are not ours.
    launch "$dir" "$dir" env -i PATH="$PATH" "$(type -P etcd)" --name test --data-dir "$dir/data" \
        --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "test=$peer" \
        --heartbeat-interval 50 --election-timeout 500 "$@"
}

# It is healthy when it has a leader: itself.
etcd_serves() {
    local port
    port=$(cat "$1/port")
    # shellcheck disable=SC2016
    timeout 2 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1"
        printf "GET /health HTTP/1.0\r\n\r\n" >&3
        grep -q "\"health\":\"true\"" <&3' etcd "$port" 2>/dev/null && listens "$1" "$port"
}
