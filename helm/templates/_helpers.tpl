{{/* The name of the release's objects. 50 characters leave room for suffixes such as -signing-key. */}}
{{- define "callbutton.fullname" -}}
{{- $named := ternary (printf "%s-%s" .Release.Name .Values.nameOverride) .Release.Name (ne .Values.nameOverride "") -}}
{{ .Values.fullnameOverride | default $named | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* The labels by which a component is found. Arguments: root, component. */}}
{{- define "callbutton.selector" -}}
app.kubernetes.io/name: {{ .root.Values.nameOverride | default .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Arguments: root, component, labels (further ones, optional). */}}
{{- define "callbutton.labels" -}}
{{ include "callbutton.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge dict (.labels | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The metadata of an object. Arguments: root, component, name or suffix, labels, annotations (all but root optional). */}}
{{- define "callbutton.metadata" -}}
name: {{ .name | default (list (include "callbutton.fullname" .root) .suffix | compact | join "-") }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "callbutton.labels" (merge (dict "component" (.component | default "gateway")) .) | nindent 2 }}
{{- with merge dict (.annotations | default dict) .root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image. Arguments: root, image, tag (the default). */}}
{{- define "callbutton.image" -}}
{{- with .root.Values.global.imageRegistry | default .image.registry }}{{ . }}/{{ end -}}
{{ .image.repository }}{{ with .image.digest }}@{{ . }}{{ else }}:{{ .image.tag | default .tag }}{{ end }}
{{- end }}

{{/* The image and pull policy of a container of ours. */}}
{{- define "callbutton.gatewayImage" -}}
image: {{ include "callbutton.image" (dict "root" . "image" .Values.image "tag" .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* The beginning of a pod's spec. Arguments: root, place (values with nodeSelector, tolerations, affinity). */}}
{{- define "callbutton.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false  # a Service called gateway would set GATEWAY_PORT to tcp://…
securityContext:
  {{- if .root.Values.podSecurityContext }}
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
  {{- else }}
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
  {{- end }}
{{- with concat .root.Values.image.pullSecrets .root.Values.global.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $.place $name }}
{{ $name }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "callbutton.containerSecurity" -}}
{{- if .Values.containerSecurityContext -}}
{{ toYaml .Values.containerSecurityContext }}
{{- else -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- end }}

{{/* The address of the upstream: given, or the simulator's. */}}
{{- define "callbutton.upstream" -}}
{{- if .Values.simulator.enabled -}}
http://{{ include "callbutton.fullname" . }}-simulator:8081/cb/main/jsp/xml/xml.jsp
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

{{/* A secret text: that of the cluster, else a random one. Arguments: root, suffix (of the Secret), entry, random, value.
The release's namespace may not exist yet; whoever can make one can read kube-system. Without a cluster, both are empty. */}}
{{- define "callbutton.generated" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- if not (or .root.Values.allowGenerated (lookup "v1" "Namespace" "" $namespace) (lookup "v1" "Namespace" "" "kube-system")) -}}
{{- fail (printf "Helm cannot read the cluster, so it cannot keep a generated secret: set %s, or allowGenerated=true for a new one at each rendering" .value) -}}
{{- end -}}
{{- $kept := (lookup "v1" "Secret" $namespace (printf "%s-%s" (include "callbutton.fullname" .root) .suffix)).data | default dict -}}
{{ get $kept .entry | b64dec | default .random }}
{{- end }}

{{/* The names of the Secrets: yours, or the chart's. The shared cache's is empty if there is none. */}}
{{- define "callbutton.signingSecret" -}}
{{ .Values.signingKey.existingSecret | default (printf "%s-signing-key" (include "callbutton.fullname" .)) }}
{{- end }}
{{- define "callbutton.keysSecret" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "callbutton.fullname" .)) }}
{{- end }}
{{- define "callbutton.cacheSecret" -}}
{{- .Values.cache.existingSecret | default (ternary (printf "%s-cache" (include "callbutton.fullname" .)) "" (ne .Values.cache.url "")) -}}
{{- end }}
{{- define "callbutton.valkeySecret" -}}
{{ .Values.valkey.existingSecret | default (printf "%s-valkey" (include "callbutton.fullname" .)) }}
{{- end }}
