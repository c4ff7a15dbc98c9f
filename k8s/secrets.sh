#!/bin/sh
# Print the two Secrets of the namespace, with random passwords, for `kubectl create`, which leaves existing ones alone:
#
#   sh k8s/secrets.sh | kubectl create -f -
#
# With a bucket of your own, give its keys: AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… sh k8s/secrets.sh | kubectl create -f -
set -eu

random() { head -c 24 /dev/urandom | od -An -vtx1 | tr -d ' \n'; }
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"; }

cat <<EOF
apiVersion: v1
kind: Secret
metadata:
  name: postgres
  namespace: cellray
  labels: {app.kubernetes.io/part-of: cellray}
stringData:
  password: $(quoted "$(random)")
---
apiVersion: v1
kind: Secret
metadata:
  name: s3
  namespace: cellray
  labels: {app.kubernetes.io/part-of: cellray}
stringData:
  access-key-id: $(quoted "${AWS_ACCESS_KEY_ID:-$(random)}")
  secret-access-key: $(quoted "${AWS_SECRET_ACCESS_KEY:-$(random)}")
EOF
