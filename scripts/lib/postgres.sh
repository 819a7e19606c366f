# PostgreSQL; part of scripts/services.

# The programs of the newest version that is there. Debian keeps them out of the path.
postgres_bin() {
    local found
    found=$(find /usr/lib/postgresql/*/bin /usr/local/bin /usr/bin -maxdepth 1 -name initdb 2>/dev/null | sort -V | tail -n 1)
    [ -n "$found" ] || return 1
    dirname "$(readlink -f "$found")"
}

postgres_ports() { pick_ports 1 >"$1/port"; }

# It refuses to run as root, so root hands it to the user of Debian's package.
postgres_launch() {
    local dir=$1 bin
    shift
    bin=$(postgres_bin) || fail "PostgreSQL is not there yet. Please run: scripts/services postgres"
    others_may_enter "$dir" postgres
    if [ ! -e "$dir/data/whole" ]; then
        rm -rf "$dir/data"
        owned_by "$dir/data" postgres
        printf 'tidegate' >"$dir/password"
        chmod 644 "$dir/password"
        as_user postgres "$bin/initdb" -D "$dir/data" -U tidegate --pwfile="$dir/password" --auth=scram-sha-256 \
            --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$dir/init.log" 2>&1 || {
            tail -n 20 "$dir/init.log" >&2
            fail "a data folder for PostgreSQL could not be made in $dir; the reason is above."
        }
        certificate "$dir" postgres
        touch "$dir/data/whole"
    fi
    # Those that a killed one leaves behind hold its memory for a moment.
    while lives_in "$dir/data"; do sleep 0.02; done
    rm -f "$dir/data/postmaster.pid"
    # What its end means by a plain signal is to wait for every client.
    printf INT >"$dir/stop-signal"
    # Without fsync what is committed still outlives a kill, as the kernel has it.
    launch_as postgres "$dir" "$dir/data" "$bin/postgres" -D "$dir/data" -p "$(cat "$dir/port")" -h 127.0.0.1 -k '' \
        -c fsync=off -c full_page_writes=off -c shared_buffers=64MB -c max_connections=200 \
        -c ssl=on -c ssl_cert_file="$dir/tls/server.crt" -c ssl_key_file="$dir/tls/server.key" "$@"
}

postgres_serves() {
    local port bin
    port=$(cat "$1/port")
    bin=$(postgres_bin) || return 1
    "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" -t 2 && listens "$1" "$port"
}
