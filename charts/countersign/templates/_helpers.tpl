{{/* Names, labels and what else is said in more than one place. */}}

{{- define "countersign.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A cluster-scoped object's name: of two releases in two namespaces each has its own. */}}
{{- define "countersign.clusterName" -}}
{{- $full := include "countersign.fullname" . -}}
{{- if eq .Release.Namespace "countersign-system" -}}
{{- $full -}}
{{- else -}}
{{- printf "%s-%s" .Release.Namespace $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select a component's pods: (dict "root" $ "component" "control"). They never change. */}}
{{- define "countersign.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "countersign.labels" -}}
{{ include "countersign.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: countersign
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image: (dict "root" $ "image" .Values.proxy.image). */}}
{{- define "countersign.image" -}}
{{- $repository := .image.repository -}}
{{- if .root.Values.imageRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .root.Values.imageRegistry) $repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Name of a component's ServiceAccount: (dict "root" $ "component" "control"). */}}
{{- define "countersign.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- printf "%s-%s" (include "countersign.fullname" .root) .component -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "countersign.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Every container of ours: not root, nothing to write to, no capability. */}}
{{- define "countersign.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "countersign.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Where a component's pods go: (dict "values" .Values.control). */}}
{{- define "countersign.placement" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
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
{{- end -}}

{{/* ---- Addresses. Ports are the programs' defaults. ---- */}}

{{- define "countersign.controlUrl" -}}
{{- printf "https://%s-control.%s.svc:8440" (include "countersign.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "countersign.issuerUrl" -}}
{{- if .Values.issuerUrl -}}
{{- .Values.issuerUrl -}}
{{- else -}}
{{- $scheme := ternary "https" "http" (ne .Values.control.discovery.tlsSecret "") -}}
{{- printf "%s://%s-control.%s.svc:8441" $scheme (include "countersign.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{/* ConfigMap with the control plane's root certificates, which the control plane writes; the command line asks for it by
     this name. */}}
{{- define "countersign.caConfigMap" -}}
countersign-control-ca
{{- end -}}

{{/* Secret with the webhook's certificate: the webhook's own, or cert-manager's. */}}
{{- define "countersign.webhookSecret" -}}
{{- printf "%s-webhook-tls" (include "countersign.fullname" .) -}}
{{- end -}}

{{/* Name of both webhook configurations, and of what cert-manager issues for them. */}}
{{- define "countersign.webhookConfiguration" -}}
{{- printf "%s-webhook" (include "countersign.clusterName" .) -}}
{{- end -}}

{{- define "countersign.webhookCertificate" -}}
{{- printf "%s-webhook" (include "countersign.fullname" .) -}}
{{- end -}}

{{/* The kinds of document, as resources of the API. */}}
{{- define "countersign.kinds" -}}
[accesspolicies, conditions, credentialproviders, destinations, guardrails, trustproviders, workloads]
{{- end -}}

{{- define "countersign.kindsStatus" -}}
[accesspolicies/status, conditions/status, credentialproviders/status, destinations/status, guardrails/status, trustproviders/status, workloads/status]
{{- end -}}
