#!/bin/sh
# Compiles one C++ test against the emulator, or to run on a GPU.
#
#   tests/kernels/build.sh plain|asan|tsan|gpu SOURCE.cpp OUTPUT [more g++ flags, such as -DBUG_x]
#
#   plain  optimised; async modes, orders and guard bands find most bugs
#   asan   AddressSanitizer and UBSan over kernel, test and emulator
#   tsan   ThreadSanitizer over the kernel. The emulator itself is compiled without it: it announces the accesses that
#          it makes for a kernel, and its own state must stay invisible (tests/emulator/README.md).
#   gpu    launches go to the driver and run the kernels of kernels/prebuilt/ (tools/gpu-check/launch.cpp)
#
# The emulator's archive and the test's object are kept in OBJECTS (beside OUTPUT), each named by a hash of its sources, the
# flags and the compiler. Of plain and gpu the objects are the same.
# CXX (g++), OPT (-O2; asan's -O1, which compiles in two thirds of the time) and OBJECTS may be set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
emulator=$here/../emulator
mode=$1 output=$3
source=$(cd "$(dirname "$2")" && pwd)/$(basename "$2") # absolute: tests find their fixtures by __FILE__
shift 3
cxx=${CXX:-g++}
opt=-O2
if [ "$mode" = asan ]; then opt=-O1; fi
flags="-std=c++17 ${OPT:-$opt} -g1 -pthread -ffp-contract=off -Wall -Wno-unknown-pragmas -Wno-unused-function -DHOST_EMULATION"
case $(uname -m) in x86_64) flags="$flags -mavx2 -mfma -mf16c" ;; esac
launch= libraries= of=$mode
case $mode in
plain) emulator_flags=$flags ;;
gpu)
    emulator_flags=$flags
    launch=$here/../../tools/gpu-check/launch.cpp libraries=-ldl of=plain
    ;;
asan)
    flags="$flags -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -DEMU_ASAN"
    emulator_flags=$flags
    ;;
tsan)
    emulator_flags="$flags -DEMU_TSAN"
    flags="$flags -fsanitize=thread -DEMU_TSAN"
    ;;
*)
    echo "build.sh: mode is plain, asan, tsan or gpu, not '$mode'" >&2
    exit 2
    ;;
esac

objects=${OBJECTS:-$(dirname "$output")}
mkdir -p "$objects"
hash=$( (cat "$emulator"/*.h "$emulator"/*.cpp "$0"; echo "$emulator_flags"; $cxx --version) | sha256sum | cut -c1-16)
archive=$objects/emulator-$of-$hash.a
if [ ! -f "$archive" ]; then
    work=$(mktemp -d "$objects/emulator-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    for file in "$emulator"/*.cpp; do
        # shellcheck disable=SC2086 # flags are words
        $cxx $emulator_flags -c "$file" -o "$work/$(basename "$file" .cpp).o"
    done
    ar rcs "$work/archive" "$work"/*.o
    mv "$work/archive" "$archive" # at once, so that builds side by side do not see half of it
fi

# shellcheck disable=SC2086
hash=$( (echo "$flags"; $cxx --version; $cxx $flags "$@" -E "$source") | sha256sum | cut -c1-16)
name=$(basename "$source" .cpp)-$of
object=$objects/$name-$hash.o
if [ ! -f "$object" ]; then
    rm -f "$objects/$name"-*.o # of earlier sources
    # shellcheck disable=SC2086
    $cxx $flags "$@" -c "$source" -o "$output.o"
    mv "$output.o" "$object" # at once
fi
# shellcheck disable=SC2086
$cxx $flags "$object" $launch "$archive" $libraries -o "$output"
