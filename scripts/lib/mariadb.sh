# MariaDB; part of scripts/services.

mariadb_ports() { pick_ports 1 >"$1/port"; }

mariadb_launch() {
    local dir=$1
    shift
    programs mariadbd mariadb-install-db mariadb-admin ||
        fail "MariaDB is not there yet. Please run: scripts/services mariadb"
    others_may_enter "$dir" mysql
    if [ ! -e "$dir/data/whole" ]; then
        rm -rf "$dir/data"
        owned_by "$dir/data" mysql
        as_user mysql mariadb-install-db --no-defaults --datadir="$dir/data" --skip-test-db --skip-name-resolve \
            --auth-root-authentication-method=normal >"$dir/init.log" 2>&1 || {
            tail -n 20 "$dir/init.log" >&2
            fail "a data folder for MariaDB could not be made in $dir; the reason is above."
        }
        certificate "$dir" mysql
        cat >"$dir/data/init.sql" <<'SQL'
CREATE USER IF NOT EXISTS 'tidegate'@'%' IDENTIFIED BY 'tidegate';
GRANT ALL ON *.* TO 'tidegate'@'%';
CREATE DATABASE IF NOT EXISTS tidegate CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
SQL
        touch "$dir/data/whole"
    fi
    while lives_in "$dir/data"; do sleep 0.02; done
    launch_as mysql "$dir" "$dir/data" "$(type -P mariadbd)" --no-defaults --datadir="$dir/data" \
        --port="$(cat "$dir/port")" --bind-address=127.0.0.1 --socket=mysql.sock --pid-file="$dir/data/pid" \
        --skip-name-resolve --init-file="$dir/data/init.sql" --innodb-flush-log-at-trx-commit=2 --sync-binlog=0 \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=48M --max-connections=300 \
        --ssl-cert="$dir/tls/server.crt" --ssl-key="$dir/tls/server.key" "$@"
}

# One that has read its init file lets our user in.
mariadb_serves() {
    local port
    port=$(cat "$1/port")
    timeout 5 mariadb-admin --no-defaults -h 127.0.0.1 -P "$port" -u tidegate -ptidegate --skip-ssl ping \
        >/dev/null 2>&1 && listens "$1" "$port"
}
