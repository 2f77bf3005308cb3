#!/bin/bash
# Makes an OCI layout in DIR/oci out of Debian packages (busybox-static, nginx-light, curl) with the images
#   busybox  a shell and its tools
#   pause    the same, asleep: what the original, measured beside ours, needs for every pod
#   demo     a web server on port 3000
#   nginx    on port 80 tells who answered and whom it saw; has curl
#   nginx2   the same with another answer
# usage: images.sh DIR
set -euo pipefail
dir=${1:?usage: images.sh DIR}
blobs=$dir/oci/blobs/sha256
mkdir -p "$blobs"
echo '{"imageLayoutVersion":"1.0.0"}' >"$dir/oci/oci-layout"
manifests=

# Files a blob under its digest and prints that.
blob() { local sum; sum=$(sha256sum <"$1" | cut -d' ' -f1); mv "$1" "$blobs/$sum"; echo "$sum"; }
size() { stat -c %s "$blobs/$1"; }

# layer NAME: DIR/NAME as a layer; sets layer (digest) and diff (digest of the uncompressed archive).
layer() {
  tar -C "$dir/$1" --sort=name --owner=0 --group=0 --numeric-owner -cf "$dir/layer.tar" .
  diff=$(sha256sum <"$dir/layer.tar" | cut -d' ' -f1)
  gzip -n "$dir/layer.tar"; layer=$(blob "$dir/layer.tar.gz")
}

# image NAME CMD LAYER:DIFF...
image() {
  local name=$1 cmd=$2 layers= diffs= config manifest; shift 2
  for l in "$@"; do
    layers+="${layers:+,}{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:${l%:*}\",\"size\":$(size "${l%:*}")}"
    diffs+="${diffs:+,}\"sha256:${l#*:}\""
  done
  echo "{\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":{\"Env\":[\"PATH=/bin:/usr/bin:/usr/sbin\"],\"Cmd\":$cmd},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[$diffs]}}" >"$dir/config"
  config=$(blob "$dir/config")
  echo "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$config\",\"size\":$(size "$config")},\"layers\":[$layers]}" >"$dir/manifest"
  manifest=$(blob "$dir/manifest")
  manifests+="${manifests:+,}{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:$manifest\",\"size\":$(size "$manifest"),\"annotations\":{\"org.opencontainers.image.ref.name\":\"$name\"}}"
}

arch=$(dpkg --print-architecture)
base=$dir/base; mkdir -p "$base"/{bin,etc,tmp,www,root}; chmod 1777 "$base/tmp"
cp "$(command -v busybox)" "$base/bin/busybox"
for tool in $(busybox --list); do [ -e "$base/bin/$tool" ] || ln -s busybox "$base/bin/$tool"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$base/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$base/etc/group"
echo 'hello from the demo' >"$base/www/index.html"
layer base; base_layer=$layer:$diff
image busybox '["sh"]' "$base_layer"
image pause '["sleep","2147483647"]' "$base_layer"
image demo '["httpd","-f","-p","3000","-h","/www"]' "$base_layer"

web=$dir/web; mkdir -p "$web"/etc/nginx "$web"/var/{log,lib}/nginx
for program in /usr/sbin/nginx /usr/bin/curl; do
  install -D "$program" "$web$program"
  for library in $(ldd "$program" | grep -o '/[^ ]*'); do [ -e "$web$library" ] || install -D "$library" "$web$library"; done
done
conf() {
  mkdir -p "$(dirname "$1")"
  cat >"$1" <<C
daemon off; user root; worker_processes 1; error_log /dev/stderr; pid /tmp/nginx.pid; events {}
http { access_log /dev/stdout; server { listen 80; location / { default_type text/plain; return 200 "\$hostname $2 \$remote_addr\n"; } } }
C
}
conf "$web/etc/nginx/nginx.conf" saw
layer web; web_layer=$layer:$diff
image nginx '["nginx"]' "$base_layer" "$web_layer"
conf "$dir/web2/etc/nginx/nginx.conf" version-two-saw
layer web2
image nginx2 '["nginx"]' "$base_layer" "$web_layer" "$layer:$diff"
echo "{\"schemaVersion\":2,\"manifests\":[$manifests]}" >"$dir/oci/index.json"
