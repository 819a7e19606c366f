# nginx with a test's own configuration; part of scripts/services.
#
# The configuration is a file with what belongs into `http { }`. In it @PORT@ and @PORT2@ are the ports to listen on
# (on 127.0.0.1), and @DIR@ is the server's folder; where it names @DIR@/tls/server.crt and .key, there is a certificate for
# localhost, signed by @DIR@/tls/ca.crt. Without a file it answers everything with "ok".

# Debian keeps it where only root looks.
nginx_bin() { PATH=$PATH:/usr/sbin:/usr/local/sbin type -P nginx; }

nginx_ports() {
    local first second
    read -r first second < <(pick_ports 2)
    printf '%s' "$second" >"$1/port2"
    printf '%s' "$first" >"$1/port"
}

# nginx_launch DIR [FILE] [workers=N]
nginx_launch() {
    local dir=$1 bin option workers=1 site='server { listen 127.0.0.1:@PORT@; location / { return 200 "ok\n"; } }'
    shift
    bin=$(nginx_bin) || fail "nginx is not there yet. Please run: scripts/services nginx"
    for option in "$@"; do
        case $option in
            workers=*) workers=${option#workers=} ;;
            *) site=$(cat "$option") || fail "the configuration for nginx cannot be read: $option" ;;
        esac
    done
    case $site in
        *@DIR@/tls/*) [ -e "$dir/tls/server.crt" ] || certificate "$dir" "$(id -un)" ;;
    esac
    site=${site//@PORT@/$(cat "$dir/port")}
    site=${site//@PORT2@/$(cat "$dir/port2")}
    site=${site//@DIR@/$dir}
    mkdir -p "$dir/tmp"
    {
        printf 'daemon off;\npid %s/nginx.pid;\nerror_log stderr;\n' "$dir"
        [ "$(id -u)" -ne 0 ] || printf 'user root;\n'
        # One process alone, so that to kill it is to kill the server; more need a master.
        if [ "$workers" = 1 ]; then printf 'master_process off;\n'; else printf 'worker_processes %s;\n' "$workers"; fi
        printf 'events { worker_connections 2048; }\nhttp {\naccess_log off;\n'
        for option in client_body proxy fastcgi uwsgi scgi; do printf '%s_temp_path %s/tmp/%s;\n' "$option" "$dir" "$option"; done
        printf '%s\n}\n' "$site"
    } >"$dir/nginx.conf"
    launch "$dir" "$dir" "$bin" -e stderr -p "$dir" -c "$dir/nginx.conf"
}

nginx_serves() { listens "$1" "$(cat "$1/port")"; }
