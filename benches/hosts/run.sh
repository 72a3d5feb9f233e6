#!/usr/bin/env bash
# Measures a model on two ranks on hosts of their own, by link, into benches/record/ranks.csv.
#
#   benches/hosts/run.sh TARGET_DIR [FLAG OF ranks]…        (as root; Linux, iproute2, Open MPI)
#   LINKS='one-host loopback 10000 1000 relay:20 relay:100 relay:500' chooses: Mbit/s, or microseconds that a relay holds each frame
#
# The hosts are network namespaces. For a rate they are joined by a pair of virtual Ethernet devices, shaped with tbf both ways. For a latency
# each has a pair of its own, and the program `delay` carries frames between their other ends (macvtap devices) and holds each. `delay ping` says
# what a message of 64 bytes takes before anything else is measured, and ranks measures sums, so that what counts is what was measured and not what was
# asked for. All of it is one machine's work: both ranks, the kernel's for TCP, and the relay's.
set -euo pipefail
target=$(realpath "$1")/release
shift
root=$(realpath "$(dirname "$0")/../..")
record=${RECORD:-$root/benches/record/ranks.csv}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Ranks that wait let the relay and the kernel work.
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
work=$(mktemp -d)
relay=

stop() {
    [ -z "$relay" ] || kill "$relay" 2>/dev/null || true
    relay=
    local host
    for host in 0 1; do
        ip link del "llama-t$host" 2>/dev/null || true
        ip link del "llama-r$host" 2>/dev/null || true
        ip netns del "llama-h$host" 2>/dev/null || true
    done
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# What mpirun starts a rank on another host with: the host of that address is a namespace, and has a name of its own.
cat >"$work/agent" <<'END'
#!/bin/sh
host=llama-h$((${1##*.} - 1))
shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
END
chmod +x "$work/agent"

on() {
    local host=llama-h$1
    shift
    ip netns exec "$host" unshare --uts sh -c "hostname $host; exec \"\$@\"" sh "$@"
}

hosts() {
    local host
    for host in 0 1; do
        ip netns add "llama-h$host"
        ip -n "llama-h$host" link set lo up
    done
}

address() {
    local host
    for host in 0 1; do
        ip -n "llama-h$host" address add "10.77.0.$((host + 1))/24" dev eth0
        ip -n "llama-h$host" link set eth0 mtu 9000 up
    done
}

# A pair of devices, shaped to so many Mbit/s: buckets of two frames, or of what passes in 50 µs, so that a single message takes its time too.
joined() {
    local rate=$1 burst host
    hosts
    ip link add eth0 netns llama-h0 type veth peer name eth0 netns llama-h1
    address
    burst=$((rate * 50 / 8 > 18100 ? rate * 50 / 8 : 18100))
    for host in 0 1; do
        ip netns exec "llama-h$host" tc qdisc add dev eth0 root tbf rate "${rate}mbit" burst "$burst" latency 100ms
    done
}

relayed() {
    local us=$1 host taps=()
    hosts
    for host in 0 1; do
        ip link add "llama-r$host" mtu 9000 type veth peer name eth0 netns "llama-h$host"
        ip link set "llama-r$host" up
        ip link add link "llama-r$host" name "llama-t$host" mtu 9000 type macvtap mode passthru
        ip link set "llama-t$host" txqueuelen 10000 up
        taps+=("/dev/tap$(cat "/sys/class/net/llama-t$host/ifindex")")
    done
    address
    "$target/delay" relay "${taps[@]}" --us "$us" &
    relay=$!
    sleep 0.5
}

measure() {
    local link=$1
    shift
    "$@" "$target/ranks" -t 1 --record "$record" --link "$link" "${flags[@]}"
}

measure_hosts() {
    local link=$1 echo
    { exec ip netns exec llama-h1 "$target/delay" echo 10.77.0.2:7777; } &
    echo=$!
    sleep 0.3
    echo "$link: half a round trip, median and 90th of a hundred, in microseconds: $(ip netns exec llama-h0 "$target/delay" ping 10.77.0.2:7777)"
    kill "$echo"
    measure "$link" on 0 mpirun -n 2 --host 10.77.0.1:1,10.77.0.2:1 --bind-to none --mca plm_rsh_agent "$work/agent" \
        --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0
}

stop
flags=("$@")
cd "$root"
for link in ${LINKS:-one-host loopback 10000 1000 relay:20 relay:100 relay:500}; do
    case $link in
    one-host) measure 'one host' mpirun -n 2 --bind-to none ;;
    loopback) measure loopback mpirun -n 2 --bind-to none --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include lo ;;
    relay:*)
        relayed "${link#relay:}"
        measure_hosts "relay of ${link#relay:} us"
        stop
        ;;
    *)
        joined "$link"
        measure_hosts "$link Mbit/s"
        stop
        ;;
    esac
done
