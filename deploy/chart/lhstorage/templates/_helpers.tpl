{{- define "lhstorage.labels" -}}
app.kubernetes.io/name: lhstorage
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "lhstorage.selector" -}}
app.kubernetes.io/name: lhstorage
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The directory of CNI plugins; empty: the installer looks for it. */}}
{{- define "lhstorage.binDir" -}}
{{- $dirs := dict "auto" "" "kubeadm" "/opt/cni/bin" "rke2" "/opt/cni/bin" "talos" "/opt/cni/bin" "k3s" "/var/lib/rancher/k3s/data/cni" "k3s-old" "/var/lib/rancher/k3s/data/current/bin" "microk8s" "/var/snap/microk8s/current/opt/cni/bin" -}}
{{- .Values.cniBinDir | default (get $dirs .Values.distribution) -}}
{{- end }}

{{/* The directory of the node file. */}}
{{- define "lhstorage.confDir" -}}
{{- .Values.confDir | default (ternary "/var/lib/lhstorage" "/etc/lhstorage" (eq .Values.distribution "talos")) -}}
{{- end }}

{{- define "lhstorage.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "lhstorage.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:lhstorage-agent
{{- end }}
