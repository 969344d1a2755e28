#!/usr/bin/env bash
# Runs every fuzz target, or those named, for FUZZ_SECONDS each (30), one after the other, and prints a table. Needs no
# nightly toolchain: coverage is LLVM's, which stable has; only sanitizers are not, and the workspace has no unsafe code.
#
#   scripts/fuzz.sh TARGET_DIR [TARGET...]
#
# What is found is kept in TARGET_DIR/fuzz/finds/TARGET. The corpus grows in TARGET_DIR/fuzz/corpus/TARGET over the runs.
set -euo pipefail
cd "$(dirname "$0")/.."

out="$1/fuzz"
shift
seconds="${FUZZ_SECONDS:-30}"
tools="${XDG_CACHE_HOME:-$HOME/.cache}/channel-factories/tools"
version=0.13.2

fail() {
    echo "fuzz: $*" >&2
    exit 1
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"
command -v c++ >/dev/null || fail "c++ is missing, libFuzzer is compiled with it: apt install g++"
PATH="$tools/bin:$PATH"
if ! command -v cargo-fuzz >/dev/null; then
    echo "fuzz: installing cargo-fuzz $version into $tools"
    CARGO_TARGET_DIR="$out/tools" cargo install cargo-fuzz --version "$version" --locked --root "$tools" ||
        fail "cargo-fuzz could not be installed: cargo install cargo-fuzz --root $tools"
fi

triple="$(rustc -vV | sed -n 's/^host: //p')"
# Without a sanitizer all flags are stable. cfg(fuzzing) is left out: LDK would take its cryptography out with it.
CARGO_TARGET_DIR="$out" cargo fuzz build --sanitizer none --no-cfg-fuzzing --target "$triple" ||
    fail "the targets could not be built (rustc $(rustc -V | cut -d' ' -f2))"

mapfile -t targets < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else cargo fuzz list; fi)
found=()
printf '%-12s %12s %10s %10s %8s\n' target runs "exec/s" coverage finds
for target in "${targets[@]}"; do
    corpus="$out/corpus/$target" finds="$out/finds/$target" log="$out/$target.log"
    rm -rf "$finds"
    mkdir -p "$corpus" "$finds"
    committed=()
    for kind in seeds regressions; do
        [ -d "fuzz/$kind/$target" ] && committed+=("fuzz/$kind/$target")
    done
    # Its own time limit ends it; the outer one is for a target that hangs where libFuzzer does not look.
    status=0
    timeout $((seconds * 2 + 120)) "$out/$triple/release/$target" "$corpus" "${committed[@]}" \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 \
        -artifact_prefix="$finds/" -print_final_stats=1 >"$log" 2>&1 || status=$?
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
    coverage="$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -1)"
    here=("$finds"/*)
    [ -e "${here[0]}" ] || here=()
    if [ "$status" -ne 0 ]; then
        [ ${#here[@]} -gt 0 ] || here=("$log")
        found+=("${here[@]}")
    fi
    printf '%-12s %12s %10s %10s %8s\n' "$target" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "${coverage:--}" "${#here[@]}"
done
if [ ${#found[@]} -gt 0 ]; then
    echo "fuzz: found something; to see it again: $out/$triple/release/TARGET FILE"
    printf '  %s\n' "${found[@]}"
    exit 1
fi
