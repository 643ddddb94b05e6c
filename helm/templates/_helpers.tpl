{{- define "callbutton.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "callbutton.labels" -}}
{{ include "callbutton.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "callbutton.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{/* The address of the upstream: given, or the simulator's. */}}
{{- define "callbutton.upstream" -}}
{{- if .Values.simulator.enabled -}}
http://{{ .Release.Name }}-simulator:8081/cb/main/jsp/xml/xml.jsp
{{- else -}}
{{ required "upstream.url is required, or simulator.enabled=true" .Values.upstream.url }}
{{- end -}}
{{- end }}

{{/* The port of an address, given as text. */}}
{{- define "callbutton.port" -}}
{{- $parts := urlParse . -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $parts.host) | default (ternary "443" "80" (hasSuffix "s" $parts.scheme)) -}}
{{- end }}

{{/* Whole seconds of a duration such as 5m, given as text. */}}
{{- define "callbutton.seconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit) | ceil | int -}}
{{- end }}

{{- define "callbutton.signingSecret" -}}
{{ .Values.signingKey.existingSecret | default (printf "%s-signing-key" .Release.Name) }}
{{- end }}

{{- define "callbutton.cacheSecret" -}}
{{- if or .Values.cache.url .Values.valkey.enabled }}{{ .Release.Name }}-cache{{ else }}{{ .Values.cache.existingSecret }}{{ end -}}
{{- end }}

{{- define "callbutton.keysSecret" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" .Release.Name) }}
{{- end }}

{{/* The keys file for one key that sees everything. */}}
{{- define "callbutton.keysFile" -}}
[[consumer]]
name = "first"
clients = ["*"]
scopes = ["calls", "personal", "status", "recordings", "refresh"]
keys = [{ sha256 = "{{ sha256sum . }}" }]
{{ end }}

{{- define "callbutton.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "callbutton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
