# Runs one private server, obeys its owner, and clears up when the owner is gone, however it went.
#
# Usage: sh -c 'eval "$SUPERVISE"' supervise FOLDER SIGNAL, with this text in SUPERVISE. Standard input is a pipe that the owner alone holds: its end, also after
# a panic, Ctrl-C or kill -9, is the order to end the server with SIGNAL, wait for all its processes and remove FOLDER.
# Commands are lines, each answered by one line:
#   run N, N lines of arguments      runs a command to its end                       -> ended STATUS
#   start N, N lines of arguments    starts the server; FOLDER/log is its output     -> started PID
#   stop SIGNAL                      ends the server and waits for it                -> stopped STATUS
#   keep                             outlives the owner, until the server is ended   -> kept
unset SUPERVISE
PATH=${PATH:-}:/usr/bin:/bin
folder=$1 last=$2 server='' logger='' status=0
# PIPE too: the owner may die before it reads an answer, and that must not end us before the clearing up.
trap '' INT TERM HUP PIPE

# The logger reads until the last process that has the server's output open is gone, not only the first one.
finish() {
    wait "$server"; status=$?
    wait "$logger"
    server=''
}

stop() {
    [ -n "$server" ] || return 0
    if [ "$1" = KILL ]; then
        # Stopped, it starts no further children while they are listed; orphans would hold its memory and files.
        kill -STOP "$server"
        children=$(cat "/proc/$server/task/$server/children" || pgrep -P "$server")
        kill -KILL $children "$server"
    else
        kill -"$1" "$server"
        kill -CONT "$server" # a paused server must hear the signal
    fi 2>/dev/null
    finish
}

start() {
    stop KILL
    rm -f "$folder/ended"
    [ -p "$folder/output" ] || mkfifo "$folder/output"
    { cat <"$folder/output" >"$folder/log"; : >"$folder/ended"; } >/dev/null &
    logger=$!
    (trap - INT TERM HUP PIPE; exec "$@") </dev/null >"$folder/output" 2>&1 &
    server=$!
}

mkdir -m 700 "$folder" || exit 1
echo ready
while read -r word value; do
    set --
    case $word in
        run | start)
            while [ $# -lt "$value" ] && IFS= read -r argument; do set -- "$@" "$argument"; done
            [ $# -eq "$value" ] || break ;; # the owner died half way through
    esac
    case $word in
        run) (trap - INT TERM HUP PIPE; exec "$@") </dev/null >"$folder/log" 2>&1; echo "ended $?" ;;
        start) start "$@"; echo "started $server" ;;
        stop) stop "$value"; echo "stopped $status" ;;
        keep) echo kept; [ -z "$server" ] || finish; break ;;
    esac
done
stop "$last"
# A PostgreSQL that was killed leaves its lock file, whose seventh line names the shared memory it could not free.
if [ -f "$folder/data/postmaster.pid" ]; then
    set -- $(sed -n 7p "$folder/data/postmaster.pid")
    [ -z "${2:-}" ] || ipcrm -m "$2"
fi
rm -rf "$folder"
