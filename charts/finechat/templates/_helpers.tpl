{{/* The labels that select the pods of one component. Call it with (list $ "api"). */}}
{{- define "finechat.selector" -}}
app.kubernetes.io/name: finechat
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Name and labels of one object. Call it with (list $ "api"). */}}
{{- define "finechat.metadata" -}}
name: {{ (first .).Release.Name }}-{{ last . }}
labels:
  {{- include "finechat.selector" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
  helm.sh/chart: finechat-{{ (first .).Chart.Version }}
{{- end }}

{{/* Settings of every pod: user 1000 as in the Dockerfiles, and no access to Kubernetes. */}}
{{- define "finechat.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # otherwise a Service named api would set API_PORT=tcp://..., which is a setting
shareProcessNamespace: true # so that orphaned processes are reaped, as Docker's init does
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Settings of every container. */}}
{{- define "finechat.container" -}}
imagePullPolicy: IfNotPresent
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "finechat.on-gpu-nodes" -}}
{{- if .Values.gpu.enabled -}}
nodeSelector: {{- toYaml .Values.gpu.nodeSelector | nindent 2 }}
tolerations: {{- toYaml .Values.gpu.tolerations | nindent 2 }}
{{- end }}
{{- end }}

{{- define "finechat.artifacts" -}}
- name: artifacts
  persistentVolumeClaim: {claimName: {{ .Release.Name }}-artifacts}
{{- end }}

{{- define "finechat.env" -}}
{{- range $name, $value := . -}}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{ end }}
{{- end }}
