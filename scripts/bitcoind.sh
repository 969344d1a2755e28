#!/usr/bin/env bash
# Finds a bitcoind that the scenarios can use, and prints its path on standard output.
#
#   scripts/bitcoind.sh          the path of a usable bitcoind; installs one where it can
#   scripts/bitcoind.sh --flags  the policy flags that this bitcoind needs, one on each line
#   scripts/bitcoind.sh --check PATH   says whether PATH is usable (exit code, text on stderr)
#
# Usable is Bitcoin Core 29 or later, or Bitcoin Knots 29 or later: from there on the node relays what the
# factory's transactions need (version 3, pay-to-anchor outputs of 0 sat, package relay).
#
# In this order: $BITCOIND, `bitcoind` on PATH, the copy that an earlier call installed in the cache folder, and on
# Debian and Ubuntu (with Debian's archive keyring) an installation into that cache folder: package bitcoin-knots
# from sid, taken from the Debian mirror that this machine's apt already uses. apt checks the signature of the
# index and the checksum of each package; nothing of the system is changed and no root is needed.
#
# Environment: BITCOIND             use this bitcoind, and fail if it is not usable
#              BITCOIND_CACHE       the cache folder (default: $XDG_CACHE_HOME/channel-factories/bitcoind)
#              BITCOIND_MIRROR      the Debian mirror (default: from this machine's apt sources)
#              BITCOIND_KEYRING     Debian's archive keyring
#              BITCOIND_VALID_UNTIL true: refuse an index past its Valid-Until date (default: warn and use it; the
#                                   signature is checked in both cases)
set -euo pipefail

readonly MIN_MAJOR=29
readonly SUITE=sid
readonly PACKAGE=bitcoin-knots
CACHE=${BITCOIND_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/channel-factories/bitcoind}
KEYRING=${BITCOIND_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

say() { echo "bitcoind.sh: $*" >&2; }

# The first line of `bitcoind -version`, for example "Bitcoin Core daemon version v29.0.0" or
# "Bitcoin Knots daemon version v29.3.knots20260508".
version_line() { "$1" -version 2>/dev/null | head -n 1; }

# Exit code 0 if the line names Core or Knots of at least MIN_MAJOR.
usable_line() {
  local major
  case $1 in *Bitcoin\ Core*|*Bitcoin\ Knots*) ;; *) return 1 ;; esac
  major=$(sed -n 's/.* v\([0-9][0-9]*\)\..*/\1/p' <<<"$1")
  [ -n "$major" ] && [ "$major" -ge "$MIN_MAJOR" ]
}

check() {
  local line
  if ! line=$(version_line "$1") || [ -z "$line" ]; then
    say "$1 does not answer to -version"
    return 1
  fi
  if ! usable_line "$line"; then
    say "$1 is \"$line\": Bitcoin Core or Bitcoin Knots $MIN_MAJOR or later is needed"
    return 1
  fi
}

# Core 29 relays what is needed by default. Knots follows a narrower policy unless told otherwise, and its
# -corepolicy lowers the two fee floors to 0.1 sat/vB, which the other two flags put back to 1 sat/vB.
flags() {
  case $(version_line "$1") in
    *Knots*) printf '%s\n' -corepolicy -minrelaytxfee=0.00001 -incrementalrelayfee=0.00001 ;;
  esac
}

advice() {
  say "$1"
  say "put a bitcoind of Bitcoin Core $MIN_MAJOR or later (or Bitcoin Knots $MIN_MAJOR or later) on PATH," \
    "or name it in BITCOIND, and run this again"
  exit 2
}

# The Debian archive among this machine's apt sources.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -E '/debian/?$' | head -n 1
}

apt_configuration() {
  local apt=$1 arch=$2 url=$3
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,state} \
    "$apt"/etc/{apt.conf.d,preferences.d,sources.list.d,trusted.gpg.d}
  : >"$apt/state/status" # an empty package status: every dependency counts as not installed
  echo "deb [arch=$arch signed-by=$KEYRING] $url $SUITE main" >"$apt/etc/sources.list"
  cat >"$apt/apt.conf" <<CONF
Dir::Etc "$apt/etc/";
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "$apt/etc/sources.list.d/";
Dir::Etc::parts "$apt/etc/apt.conf.d/";
Dir::Etc::preferencesparts "$apt/etc/preferences.d/";
Dir::Etc::trustedparts "$apt/etc/trusted.gpg.d/";
Dir::State "$apt/state/";
Dir::State::lists "$apt/lists/";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache/";
APT::Architecture "$arch";
APT::Architectures "$arch";
APT::Install-Recommends "false";
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Debug::NoLocking "true";
CONF
}

# Reads the suite's signed index. A mirror that lags behind may offer one past its Valid-Until date.
read_index() {
  local apt=$1
  if apt-get -qq -o Acquire::Check-Valid-Until=true update 2>"$apt/errors"; then return; fi
  if ! grep -q 'is expired' "$apt/errors" || [ "${BITCOIND_VALID_UNTIL:-}" = true ]; then
    cat "$apt/errors" >&2
    advice "apt could not read $SUITE's index"
  fi
  say "warning: the mirror lags behind ($SUITE's signed index is past its Valid-Until date); using it all the same"
  apt-get -qq -o Acquire::Check-Valid-Until=false update || advice "apt could not read $SUITE's index"
}

# Programs that find their libraries beside them, wherever the folder stands: the package is built against a newer
# libc than an older Debian has, so its own is unpacked with it.
write_wrappers() {
  local new=$1 name
  mkdir -p "$new/bin"
  for name in bitcoind bitcoin-cli; do
    cat >"$new/bin/$name" <<'WRAPPER'
#!/bin/sh
self=$(readlink -f "$0") && root=${self%/bin/*}/root || exit 127
for ld in "$root"/usr/lib*/ld-linux-*.so.* "$root"/usr/lib/*/ld-linux-*.so.*; do [ -x "$ld" ] && break; done
libraries=$(echo "$root"/usr/lib/*-linux-gnu*)
exec "$ld" --library-path "$libraries" --argv0 "$0" "$root/usr/bin/${self##*/}" "$@"
WRAPPER
    chmod 755 "$new/bin/$name"
  done
}

install_from_debian() {
  local tool url arch apt new package name
  for tool in apt-get dpkg dpkg-deb flock; do
    command -v "$tool" >/dev/null || advice "no usable bitcoind found, and no $tool here to install one with"
  done
  [ -r "$KEYRING" ] || advice "no usable bitcoind found, and no Debian archive keyring at $KEYRING"
  url=${BITCOIND_MIRROR:-$(mirror)} || true
  [ -n "$url" ] || advice "no usable bitcoind found, and no Debian mirror among apt's sources (BITCOIND_MIRROR)"
  arch=$(dpkg --print-architecture)

  mkdir -p "$CACHE"
  CACHE=$(cd "$CACHE" && pwd)
  exec 9>"$CACHE/.lock"
  flock 9 # of two installers at once, the second finds the work done
  if [ -x "$CACHE/bin/bitcoind" ] && check "$CACHE/bin/bitcoind"; then return; fi

  apt=$CACHE/.apt new=$CACHE/.new
  rm -rf "$apt" "$new"
  trap 'rm -rf "$CACHE/.apt" "$CACHE/.new"' EXIT
  say "installing $PACKAGE of Debian $SUITE into $CACHE (mirror of this machine's apt)"
  apt_configuration "$apt" "$arch" "$url"
  export APT_CONFIG=$apt/apt.conf
  read_index "$apt"
  apt-get -qq -y --no-install-recommends --download-only -o APT::Immediate-Configure=false \
    install "$PACKAGE" >&2 || advice "apt could not fetch $PACKAGE"

  mkdir -p "$new/root"
  for package in "$apt"/cache/archives/*.deb; do
    name=$(dpkg-deb -f "$package" Package)
    case $name in
      "$PACKAGE"|lib*)
        dpkg-deb -x "$package" "$new/root"
        echo "$name $(dpkg-deb -f "$package" Version) $(sha256sum <"$package" | cut -d' ' -f1)" \
          >>"$new/root/PACKAGES"
        ;;
    esac
  done
  [ -x "$new/root/usr/bin/bitcoind" ] || advice "the package $PACKAGE holds no bitcoind"
  rm -rf "$new"/root/usr/share/{doc,man,locale,lintian} "$new"/root/{etc,var}
  write_wrappers "$new"
  check "$new/bin/bitcoind" || advice "the bitcoind of Debian $SUITE is not usable here"
  rm -rf "$CACHE/bin" "$CACHE/root"
  mv "$new/root" "$CACHE/root"
  mv "$new/bin" "$CACHE/bin"
  say "installed: $(version_line "$CACHE/bin/bitcoind")"
}

find_bitcoind() {
  local found
  if [ -n "${BITCOIND:-}" ]; then
    check "$BITCOIND" || advice "BITCOIND names a bitcoind that cannot be used"
    echo "$BITCOIND"
    return
  fi
  if found=$(command -v bitcoind) && check "$found"; then
    echo "$found"
    return
  fi
  if [ ! -x "$CACHE/bin/bitcoind" ] || ! check "$CACHE/bin/bitcoind"; then
    install_from_debian
  fi
  echo "$CACHE/bin/bitcoind"
}

case ${1:-} in
  "") find_bitcoind ;;
  --flags) path=$(find_bitcoind) && flags "$path" ;;
  --check) check "${2:?--check needs a path}" ;;
  *) say "unknown argument $1"; exit 64 ;;
esac
