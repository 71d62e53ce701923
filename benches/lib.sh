# What the measuring scripts share: the build, a working directory, children that end with the script, numbers and rows.
# Sourced by the scripts, which have said their name in name and stand in the workspace.
# shellcheck shell=bash

say() { printf '%s: %s\n' "$name" "$*" >&2; }
fail() { say "$*"; exit 1; }
# usage SCRIPT: prints the comment at the head of the script.
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$1" >&2; exit 2; }

# need_files DIR FILE...
need_files() {
    local dir=$1 file
    shift
    for file in "$@"; do
        [ -e "$dir/$file" ] || fail "$dir/$file is missing: run benches/debian-image and benches/record-trace"
    done
}
need_programs() {
    local program
    export PATH="$PATH:/usr/sbin:/sbin"
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "$program is missing: run tests/setup test"
    done
}

# build PACKAGE...: release builds of their programs; sets bin.
build() {
    local package options=()
    for package in "$@"; do options+=(-p "$package"); done
    say "build"
    cargo build --release --locked "${options[@]}" --bins >&2
    bin=${CARGO_TARGET_DIR:-target}/release
}

# make_work [PARENT]: sets work, a directory that goes with the script, and the children with it. Sockets lie there, whose
# names are limited to 107 bytes.
make_work() {
    work=$(mktemp -d "${1:-${TMPDIR:-/tmp}}/$name.XXXXXX")
    export VMNETX_STATE_DIR="$work/state"
    children=()
    trap end_all EXIT
    trap 'exit 130' INT TERM
}
end_all() {
    local pid
    for pid in "${children[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
# start COMMAND...: runs it in the background; stop ends the latest one, by force if it does not end in 10 s.
start() { "$@" & children+=($!); }
stop() {
    local pid=${children[-1]}
    unset 'children[-1]'
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 500); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.02
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
until_there() {
    for _ in $(seq 500); do
        [ -e "$1" ] && return
        sleep 0.02
    done
    fail "$1 did not appear"
}
# start_nginx SERVER_LINES: starts nginx on a free port, which it leaves in web; the lines say what it serves. It logs a line
# for each request to $work/access.log.
start_nginx() {
    local user=''
    [ "$(id -u)" != 0 ] || user='user root;'
    web=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    mkdir "$work/nginx"
    cat >"$work/nginx.conf" <<CONFIG
daemon off; $user worker_processes 1; pid $work/nginx.pid; error_log $work/error.log;
events {}
http { access_log $work/access.log; sendfile on; tcp_nodelay on;
  client_body_temp_path $work/nginx/1; proxy_temp_path $work/nginx/2; fastcgi_temp_path $work/nginx/3;
  uwsgi_temp_path $work/nginx/4; scgi_temp_path $work/nginx/5;
  server { listen 127.0.0.1:$web; $1 } }
CONFIG
    start nginx -p "$work" -c "$work/nginx.conf"
    until_there "$work/nginx.pid"
}

# open_link RATE RTT: a fresh line to nginx; sets shaped, its address. close_link: leaves what it has carried in
# $work/link.json, and in requests how many came to nginx meanwhile.
open_link() {
    rm -f "$work/link.talk"
    requests_before=$(wc -l <"$work/access.log")
    start "$bin/shaped-link" --listen 127.0.0.1:0 --to "127.0.0.1:$web" --rate "$1" --rtt "$2" --json \
        >"$work/link.json" 2>"$work/link.talk"
    for _ in $(seq 500); do
        shaped=$(sed -n 's/^listening on //p' "$work/link.talk")
        [ -z "$shaped" ] || return 0
        sleep 0.02
    done
    fail "the link does not listen"
}
close_link() {
    stop
    requests=$(($(wc -l <"$work/access.log") - requests_before))
}

# seconds COMMAND...: how long it takes; what it says is in $work/said.
seconds() {
    local start end
    start=$(date +%s.%N)
    "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; fail "$* failed"; }
    end=$(date +%s.%N)
    since "$start" "$end"
}
since() { awk -v a="$1" -v b="${2:-$(date +%s.%N)}" 'BEGIN { printf "%.3f\n", b - a }'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }
mega() { awk -v a="$1" 'BEGIN { printf "%.2f", a / 1e6 }'; }
bytes_in() { find "$1" -type f -printf '%s\n' | awk '{ s += $1 } END { print s + 0 }'; }
# row CELL...: a row of a Markdown table.
row() { printf '| %s ' "$@"; printf '|\n'; }
