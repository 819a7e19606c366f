# Starting and stopping servers in private folders; part of scripts/services.
#
# A server's folder holds `port`, `pid` and `log`. Its port is chosen once, so that what was killed comes back at the
# same address; its pid is believed only while that process still is the one that was started there.
#
# Each kind of server has three functions: KIND_ports DIR chooses, KIND_launch DIR OPTION... starts, and KIND_serves DIR
# asks whether it answers.

# Seconds that a server may take to answer, and then to stop.
PATIENCE=60
STOPPING=15

start_server() {
    local kind=$1 dir=$2
    shift 2
    watched_parent
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    # Two that start the same one would start it twice.
    exec 7>"$dir/lock"
    flock 7
    case $kind in
        redis)
            bring_up redis "$dir" "$@"
            printf 'redis://127.0.0.1:%s\n' "$(cat "$dir/port")"
            ;;
        redis-cluster) bring_up_redis_cluster "$dir" "$@" ;;
        kafka)
            bring_up kafka "$dir" "$@"
            printf '127.0.0.1:%s\n' "$(cat "$dir/port")"
            ;;
        postgres)
            bring_up postgres "$dir" "$@"
            printf 'postgres://tidegate:tidegate@127.0.0.1:%s/postgres\n' "$(cat "$dir/port")"
            ;;
        mariadb)
            bring_up mariadb "$dir" "$@"
            printf 'mysql://tidegate:tidegate@127.0.0.1:%s/tidegate\n' "$(cat "$dir/port")"
            ;;
        etcd | nginx)
            bring_up "$kind" "$dir" "$@"
            printf '127.0.0.1:%s\n' "$(cat "$dir/port")"
            ;;
        *) fail "there is no server \"$kind\" here; known are: redis, redis-cluster, kafka, postgres, mariadb, etcd, nginx" ;;
    esac
}

# bring_up KIND DIR OPTION...: starts what does not serve yet. A port that somebody else holds is exchanged if it is
# new; one that is known must come free again, as what was killed a moment ago may still hold it.
bring_up() {
    local kind=$1 dir=$2 fresh='' from end=$((SECONDS + PATIENCE))
    shift 2
    mkdir -p "$dir"
    serves_already "$kind" "$dir" "$end" && return
    [ -s "$dir/port" ] || fresh=yes
    while :; do
        [ -s "$dir/port" ] || "${kind}_ports" "$dir"
        touch "$dir/log"
        from=$(($(wc -c <"$dir/log") + 1))
        "${kind}_launch" "$dir" "$@"
        until_serves "$kind" "$dir" "$end" && return
        kill_server "$dir"
        if [ $SECONDS -ge "$end" ] || ! tail -c "+$from" "$dir/log" | grep -qi 'address already in use'; then
            tail -c "+$from" "$dir/log" | tail -n 20 >&2
            [ -z "$fresh" ] || rm -f "$dir/port"
            fail "$kind in $dir does not answer; the end of its log is above."
        fi
        [ -z "$fresh" ] || rm -f "$dir/port"
        sleep 0.2
    done
}

# What was killed a moment ago may take another to be gone: it does not answer any more. What is paused answers later.
serves_already() {
    local kind=$1 dir=$2 end=$3
    while alive "$dir"; do
        if paused "$dir" || "${kind}_serves" "$dir"; then
            return 0
        fi
        [ $SECONDS -lt "$end" ] || fail "$kind in $dir runs but does not answer. Please run: scripts/services stop $dir"
        sleep 0.05
    done
    return 1
}

until_serves() {
    local kind=$1 dir=$2 end=$3
    until "${kind}_serves" "$dir"; do
        if [ $SECONDS -ge "$end" ] || ! alive "$dir"; then
            return 1
        fi
        sleep 0.05
    done
}

# ---- ports

# pick_ports COUNT [bus]: free ports of loopback, below those that outgoing connections take; with "bus", the port 10000
# above each is free too. They are taken in turn, as one that is free now may belong to a server that will be back.
pick_ports() {
    local count=$1 bus=${2:-} next found=()
    mkdir -p "$SERVICES"
    exec 8>>"$SERVICES/ports"
    flock 8
    next=$(cat "$SERVICES/ports")
    [[ $next =~ ^[0-9]+$ ]] || next=$((RANDOM % 10000))
    while [ ${#found[@]} -lt "$count" ]; do
        next=$(((next + 1) % 10000))
        if taken $((12000 + next)); then continue; fi
        if [ -n "$bus" ] && taken $((22000 + next)); then continue; fi
        found+=($((12000 + next)))
    done
    printf '%s' "$next" >"$SERVICES/ports"
    exec 8>&-
    printf '%s\n' "${found[*]}"
}

# listeners PORT: the sockets that listen there, by their inodes.
listeners() {
    awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port { print $10 }' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null || true
}

taken() { [ -n "$(listeners "$1")" ]; }

# listens DIR PORT: whether it is the server of this folder that answers there, and no other that was quicker.
listens() {
    local pid inode
    pid=$(cat "$1/pid") || return 1
    for inode in $(listeners "$2"); do
        [ -z "$(find "/proc/$pid/fd" -lname "socket:\[$inode\]" -print -quit 2>/dev/null)" ] || return 0
    done
    return 1
}

# ---- processes

# process PID: sets STATE, and BEGAN to when it began in clock ticks; with the pid, that tells it from a later one.
process() {
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -r -a fields <<<"${stat##*) }"
    STATE=${fields[0]} BEGAN=${fields[19]}
}

# runs PID BEGAN: whether it still is the same process, and no dead one that nobody has buried.
runs() { process "$1" && [[ $STATE != [ZX] && $BEGAN = "$2" ]]; }

# alive DIR: whether the process that was started in a folder still runs.
alive() {
    local pid began
    read -r pid began 2>/dev/null <"$1/started" || return 1
    runs "$pid" "$began"
}

paused() { process "$(cat "$1/pid")" && [ "$STATE" = T ]; }

# launch DIR PLACE COMMAND...: starts it at a place, with nothing of our own open, so that whoever reads our output sees
# its end.
launch() {
    local dir=$1 place=$2 pid
    shift 2
    (
        cd "$place" || exit
        close_others
        exec setsid "$@" </dev/null >>"$dir/log" 2>&1
    ) &
    # setsid keeps the pid of a shell that leads no group.
    pid=$!
    disown
    BEGAN=
    process "$pid" || true
    printf '%s %s\n' "$pid" "$BEGAN" >"$dir/started"
    printf '%s' "$pid" >"$dir/pid"
    if [ -n "${TIDEGATE_SERVICES_PARENT:-}" ]; then
        watch "$TIDEGATE_SERVICES_PARENT" "$PARENT_BEGAN" "$pid" "$BEGAN"
    fi
}

# launch_as USER DIR PLACE COMMAND...: the same, as another user if we are root; for what refuses to be root.
launch_as() {
    local user=$1 dir=$2 place=$3
    shift 3
    if [ "$(id -u)" -eq 0 ]; then
        # setpriv keeps the pid too.
        launch "$dir" "$place" setpriv --reuid="$user" --regid="$user" --init-groups "$@"
    else
        launch "$dir" "$place" "$@"
    fi
}

as_user() {
    local user=$1
    shift
    if [ "$(id -u)" -eq 0 ]; then
        (cd / && setpriv --reuid="$user" --regid="$user" --init-groups "$@")
    else
        "$@"
    fi
}

owned_by() {
    mkdir -p "$1"
    chmod 700 "$1"
    [ "$(id -u)" -ne 0 ] || chown "$2:" "$1"
}

# Whether USER can get to what is in DIR: a temporary folder is closed to others at first.
others_may_enter() {
    [ "$(id -u)" -eq 0 ] || return 0
    chmod o+x "$1"
    as_user "$2" test -x "$1" || fail "the user $2 cannot enter $1; please name a folder that others may pass through, as below /tmp."
}

# Whether a process has this as its place.
lives_in() { [ -n "$(find /proc/[0-9]*/cwd -maxdepth 0 -lname "$1" -print -quit 2>/dev/null)" ]; }

# certificate DIR USER: an authority of its own in DIR/tls/ca.crt, and what a server on loopback shows that is signed by it.
certificate() {
    local at=$1/tls
    programs openssl || fail "openssl is not there yet. Please run: scripts/services postgres mariadb"
    rm -rf "$at"
    owned_by "$at" "$2"
    {
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=Tidegate tests" \
            -keyout "$at/ca.key" -out "$at/ca.crt"
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=localhost" \
            -keyout "$at/server.key" -out "$at/server.csr"
        openssl x509 -req -in "$at/server.csr" -CA "$at/ca.crt" -CAkey "$at/ca.key" -CAcreateserial -days 30 \
            -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n') \
            -out "$at/server.crt"
    } >"$1/tls.log" 2>&1 || fail "no certificate could be made; the reason is in $1/tls.log"
    chmod 600 "$at/server.key"
    [ "$(id -u)" -ne 0 ] || chown -R "$2:" "$at"
}

close_others() {
    local fd
    for fd in "/proc/$BASHPID/fd/"*; do
        fd=${fd##*/}
        if [ "$fd" -gt 2 ]; then exec {fd}>&-; fi
    done
}

PARENT_BEGAN=

# Whom our servers are not to outlive, if anybody.
watched_parent() {
    local parent=${TIDEGATE_SERVICES_PARENT:-}
    [ -n "$parent" ] || return 0
    if ! [[ $parent =~ ^[0-9]+$ ]] || ! process "$parent"; then
        fail "TIDEGATE_SERVICES_PARENT must be the number of a process that runs, and not \"$parent\"."
    fi
    PARENT_BEGAN=$BEGAN
}

# watch PARENT BEGAN SERVER BEGAN: ends a server when the process it was started for is gone. It leads a session of its
# own, as whoever ends the tests may end all of their group.
watch() {
    (
        close_others
        export -f process runs
        # shellcheck disable=SC2016
        exec setsid bash -c '
            # Reading what never comes is a sleep that starts no process.
            exec 3<> <(:)
            while runs "$3" "$4"; do
                # It leads a group, of its own processes.
                if ! runs "$1" "$2"; then kill -9 -- "$3" "-$3"; fi
                read -r -t 1 -u 3
            done' watch "$@" </dev/null >/dev/null 2>&1
    ) &
    disown
}

kill_server() {
    if alive "$1"; then
        kill -9 -- "$(cat "$1/pid")" "-$(cat "$1/pid")" 2>/dev/null || true
        while alive "$1"; do sleep 0.02; done
    fi
    rm -f "$1/pid" "$1/started"
}

# stop_servers DIR: all that were started in this folder or below it.
stop_servers() {
    local dirs=() dir end=$((SECONDS + STOPPING))
    [ -d "$1" ] || fail "there is no folder $1"
    exec 7>"$1/lock"
    flock 7
    mapfile -t dirs < <(find "$1" -name started -type f -printf '%h\n')
    for dir in "${dirs[@]}"; do
        if alive "$dir"; then
            # One that is paused would not hear of it.
            kill -"$(cat "$dir/stop-signal" 2>/dev/null || echo TERM)" "$(cat "$dir/pid")" 2>/dev/null || true
            kill -CONT "$(cat "$dir/pid")" 2>/dev/null || true
        fi
    done
    for dir in "${dirs[@]}"; do
        while alive "$dir" && [ $SECONDS -lt $end ]; do sleep 0.02; done
        kill_server "$dir"
    done
}
