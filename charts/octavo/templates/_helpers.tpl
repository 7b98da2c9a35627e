{{/* Start of every object's name: the release's, with "octavo" in it. */}}
{{- define "octavo.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = contains "octavo" .Release.Name | ternary .Release.Name (printf "%s-octavo" .Release.Name) -}}
{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "octavo.selectorLabels" -}}
app.kubernetes.io/name: octavo
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of an object. Takes root and component. */}}
{{- define "octavo.labels" -}}
{{- with .root.Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "octavo.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Name, namespace and labels of an object. Takes root and component; name: its end. */}}
{{- define "octavo.metadata" -}}
name: {{ printf "%s-%s" (include "octavo.fullname" .root) (get . "name" | default .component) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "octavo.labels" . | nindent 2 }}
{{- end -}}

{{/* Image of `.image`. Takes root; registry: what goes before its repository. */}}
{{- define "octavo.image" -}}
{{- $name := .image.repository -}}
{{- with get . "registry" -}}{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Metadata of the pods of a component. Takes root, component, values; checksum of what they read. */}}
{{- define "octavo.podMetadata" -}}
labels:
  {{- with merge (dict) .values.podLabels .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "octavo.selectorLabels" . | nindent 2 }}
{{- $annotations := deepCopy .values.podAnnotations }}
{{- with get . "checksum" }}{{- $_ := set $annotations "octavo.dev/config-checksum" . }}{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the pods of a component have in common, but for containers and volumes. */}}
{{- define "octavo.podSpec" -}}
serviceAccountName: {{ printf "%s-%s" (include "octavo.fullname" .root) .component }}
automountServiceAccountToken: {{ eq .component "operator" }}
# The variables that Kubernetes makes of Services (OCTAVO_..._PORT) would be taken for flags.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with get .root.Values "runAsUser" }}
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    {{- if semverCompare ">=1.27-0" .root.Capabilities.KubeVersion.Version }}
    # Else the old pods of a rollout would count, and all new ones could come to one node.
    matchLabelKeys: [pod-template-hash]
    {{- end }}
    labelSelector:
      matchLabels:
        {{- include "octavo.selectorLabels" . | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "octavo.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* URL at which applications in the cluster reach the router. */}}
{{- define "octavo.routerUrl" -}}
{{- $port := int .Values.router.service.port -}}
{{- printf "http://%s-router.%s.svc%s" (include "octavo.fullname" .) .Release.Namespace (eq $port 80 | ternary "" (printf ":%d" $port)) -}}
{{- end -}}

{{/* A PodDisruptionBudget of one pod at a time, in the version that is served. Takes root and component. */}}
{{- define "octavo.disruptionBudget" -}}
apiVersion: {{ .root.Capabilities.APIVersions.Has "policy/v1" | ternary "policy/v1" "policy/v1beta1" }}
kind: PodDisruptionBudget
metadata:
  {{- include "octavo.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "octavo.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* Not empty where monitors are wanted and can be. */}}
{{- define "octavo.monitors" -}}
{{- $wanted := .Values.monitoring.monitors -}}
{{- if or (eq $wanted "always") (and (eq $wanted "auto") (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
yes
{{- end -}}
{{- end -}}

{{/* Labels of all replicas, as octavo_operator/names.py gives them. */}}
{{- define "octavo.replicaLabels" -}}
app.kubernetes.io/managed-by: octavo-operator
app.kubernetes.io/component: replica
{{- end -}}
