{{- define "wsbouncer.name" -}}
{{- $name := .Release.Name }}{{ if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end }}{{ $name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "wsbouncer.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "wsbouncer.labels" -}}
{{ include "wsbouncer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
