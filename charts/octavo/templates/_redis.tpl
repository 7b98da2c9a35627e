{{/* Not empty where the chart installs a Redis. */}}
{{- define "octavo.redis.installed" -}}
{{- if not (or .Values.redis.external.url .Values.redis.external.urlSecret.name) -}}yes{{- end -}}
{{- end -}}

{{/* The operator names Secrets of its own NAME-redis, for any NAME: this must be none of them. */}}
{{- define "octavo.redis.secretName" -}}
{{- .Values.redis.auth.existingSecret | default (printf "%s-redis-password" (include "octavo.fullname" .)) -}}
{{- end -}}

{{/* OCTAVO_REDIS_URL, as the environment of operator and router. */}}
{{- define "octavo.redis.env" -}}
{{- $external := .Values.redis.external -}}
{{- if $external.urlSecret.name -}}
- name: OCTAVO_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $external.urlSecret.name }}
      key: {{ $external.urlSecret.key }}
{{- else if include "octavo.redis.installed" . -}}
{{- include "octavo.redis.passwordEnv" (dict "name" (include "octavo.redis.secretName" .) "key" .Values.redis.auth.secretKey) }}
- name: OCTAVO_REDIS_URL
  value: {{ printf "redis://:$(REDIS_PASSWORD)@%s-redis.%s.svc:6379/0" (include "octavo.fullname" .) .Release.Namespace }}
{{- else if $external.passwordSecret.name -}}
{{- include "octavo.redis.passwordEnv" $external.passwordSecret }}
- name: OCTAVO_REDIS_URL
  value: {{ regexReplaceAll "^(rediss?://)(?:([^@/]*)@)?(.*)$" $external.url "${1}${2}:$$(REDIS_PASSWORD)@${3}" | quote }}
{{- else -}}
- name: OCTAVO_REDIS_URL
  value: {{ $external.url | quote }}
{{- end -}}
{{- end -}}

{{- define "octavo.redis.passwordEnv" -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end -}}
