{{/* The chart's name, or what takes its place. */}}
{{- define "entrepot.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What the names of objects begin with. Short, because kinds append to it. */}}
{{- define "entrepot.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "entrepot.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "entrepot.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of every object. */}}
{{- define "entrepot.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
app.kubernetes.io/name: {{ include "entrepot.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: entrepot
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels by which a workload knows its pods; they never change. Takes a list: root, component. */}}
{{- define "entrepot.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "entrepot.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* "true" if an image's repository says which registry has it: its first part can be no part of a path. */}}
{{- define "entrepot.hasHost" -}}
{{- $parts := splitList "/" . -}}
{{- $first := first $parts -}}
{{- if and (gt (len $parts) 1) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) -}}
true
{{- end -}}
{{- end }}

{{/* "true" if it is known which registry has the image. Takes a list: root, image. */}}
{{- define "entrepot.namesRegistry" -}}
{{- if or (index . 0).Values.global.imageRegistry (eq (include "entrepot.hasHost" (index . 1).repository) "true") -}}
true
{{- end -}}
{{- end }}

{{/* An image by digest or tag, with the global registry in front of a repository that names none. Takes a list: root, image. */}}
{{- define "entrepot.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := $root.Values.global.imageRegistry -}}
{{- if and $registry (ne (include "entrepot.hasHost" $image.repository) "true") -}}
{{- trimSuffix "/" $registry }}/
{{- end -}}
{{- $image.repository -}}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* When an image is pulled. Takes a list: root, image. */}}
{{- define "entrepot.pullPolicy" -}}
{{- (index . 1).pullPolicy | default (ternary "IfNotPresent" "Never" (eq (include "entrepot.namesRegistry" .) "true")) -}}
{{- end }}

{{/* The agent's image as JSON: the operator's unless it has one of its own. */}}
{{- define "entrepot.agentImage" -}}
{{- $own := .Values.nodeAgent.image -}}
{{- if $own.repository -}}
{{- toJson $own -}}
{{- else -}}
{{- $operator := .Values.operator.image -}}
{{- toJson (dict "repository" $operator.repository "tag" $operator.tag "digest" $operator.digest "pullPolicy" ($own.pullPolicy | default $operator.pullPolicy)) -}}
{{- end -}}
{{- end }}

{{- define "entrepot.operator.serviceAccount" -}}
{{- $account := .Values.operator.serviceAccount -}}
{{- $account.name | default (ternary (printf "%s-operator" (include "entrepot.fullname" .)) "default" $account.create) -}}
{{- end }}

{{- define "entrepot.agent.serviceAccount" -}}
{{- $account := .Values.nodeAgent.serviceAccount -}}
{{- $account.name | default (ternary (printf "%s-node" (include "entrepot.fullname" .)) "default" $account.create) -}}
{{- end }}

{{/* A pod that the Pod Security Standard "restricted" admits. */}}
{{- define "entrepot.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Its container. */}}
{{- define "entrepot.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* "true" if the release namespace is an object of the release: it will be made by this very install, or was by an earlier
one. Helm 3 creates objects instead of applying them and would stumble over the namespace that it made itself. */}}
{{- define "entrepot.managesNamespace" -}}
{{- if and .Values.namespace.manage (semverCompare ">= 4.0.0-0" .Capabilities.HelmVersion.Version) -}}
{{- $found := lookup "v1" "Namespace" "" .Release.Namespace -}}
{{- $annotations := dig "metadata" "annotations" (dict) ($found | default dict) | default dict -}}
{{- if or (not $found) (and (eq (dig "meta.helm.sh/release-name" "" $annotations) .Release.Name) (eq (dig "meta.helm.sh/release-namespace" "" $annotations) .Release.Namespace)) -}}
true
{{- end -}}
{{- end -}}
{{- end }}
