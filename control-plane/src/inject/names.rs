//! Every name that injection, installation, redirection and the Kubernetes source have in common: labels,
//! annotations, containers, volumes, ports. Said here once.

/// Label of a namespace or a pod: [`ENABLED`] or [`DISABLED`]. A pod's own wins over its namespace's.
pub const INJECT_LABEL: &str = "leno.dev/inject";
/// The sidecar is wanted.
pub const ENABLED: &str = "enabled";
/// The sidecar is not wanted.
pub const DISABLED: &str = "disabled";
/// Istio's label (and older annotation) of a pod with the same meaning: `"true"` or `"false"`.
pub const ISTIO_INJECT: &str = "sidecar.istio.io/inject";

/// What was injected, as JSON: what `uninject` needs to restore the original.
pub const INJECTED: &str = "leno.dev/injected";
/// Image of the sidecar.
pub const IMAGE: &str = "leno.dev/image";
/// Image of the container that writes the rules.
pub const REDIRECT_IMAGE: &str = "leno.dev/redirect-image";
/// `"true"`: an init container that stays (Kubernetes 1.29 and later); `"false"`: an ordinary container.
pub const NATIVE_SIDECAR: &str = "leno.dev/native-sidecar";
/// CPU the sidecar asks for.
pub const PROXY_CPU: &str = "leno.dev/proxy-cpu";
/// Most CPU it may take.
pub const PROXY_CPU_LIMIT: &str = "leno.dev/proxy-cpu-limit";
/// Memory the sidecar asks for.
pub const PROXY_MEMORY: &str = "leno.dev/proxy-memory";
/// Most memory it may take.
pub const PROXY_MEMORY_LIMIT: &str = "leno.dev/proxy-memory-limit";
/// What the sidecar logs: a filter as `--log` takes.
pub const LOG_LEVEL: &str = "leno.dev/log-level";
/// `off`, `text` or `json`.
pub const ACCESS_LOG: &str = "leno.dev/access-log";
/// Ports whose calls are captured wherever they go, beside the ranges.
pub const INCLUDE_OUTBOUND_PORTS: &str = "leno.dev/include-outbound-ports";
/// Ports whose calls are not captured.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "leno.dev/exclude-outbound-ports";
/// Destinations, as ranges, whose calls are captured; `*` is all.
pub const INCLUDE_OUTBOUND_RANGES: &str = "leno.dev/include-outbound-ranges";
/// Destinations, as ranges, whose calls are not captured.
pub const EXCLUDE_OUTBOUND_RANGES: &str = "leno.dev/exclude-outbound-ranges";
/// Ports of the application that are captured; `*` is all.
pub const INCLUDE_INBOUND_PORTS: &str = "leno.dev/include-inbound-ports";
/// Ports of the application that are not captured.
pub const EXCLUDE_INBOUND_PORTS: &str = "leno.dev/exclude-inbound-ports";
/// Network interfaces from which nothing is captured.
pub const EXCLUDE_INTERFACES: &str = "leno.dev/exclude-interfaces";
/// How long the sidecar finishes what is under way, such as `30s`.
pub const DRAIN_TIME: &str = "leno.dev/drain-time";
/// Who writes the rules: `init`, `cni` or `none`.
pub const REDIRECT: &str = "leno.dev/redirect";
/// `"false"`: probes go to the application directly.
pub const REWRITE_PROBES: &str = "leno.dev/rewrite-probes";

/// The sidecar's container.
pub const PROXY_CONTAINER: &str = "leno-proxy";
/// The init container that writes the rules.
pub const REDIRECT_CONTAINER: &str = "leno-redirect";
/// Volume with the projected service-account token.
pub const TOKEN_VOLUME: &str = "leno-token";
/// Volume with the trusted roots.
pub const ROOT_VOLUME: &str = "leno-root";
/// Volume with what the sidecar keeps.
pub const STATE_VOLUME: &str = "leno-state";

/// User that the sidecar runs as, whose connections are not captured.
pub const PROXY_USER: u32 = 1337;
/// Its group, whose connections are not captured either.
pub const PROXY_GROUP: u32 = 1337;

/// Port to which the application's calls are captured.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port to which calls to the application are captured, and at which other sidecars call.
pub const INBOUND_PORT: u16 = 15006;
/// The sidecar's port for operators, on loopback only.
pub const ADMIN_PORT: u16 = 15000;
/// The sidecar's port for readiness and rewritten probes.
pub const READY_PORT: u16 = 15021;
/// The sidecar's port for metrics.
pub const METRICS_PORT: u16 = 15090;
/// Every port that is the sidecar's in a pod.
pub const OWN_PORTS: [u16; 5] = [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, READY_PORT, METRICS_PORT];

/// Audience of the service-account tokens that prove who a sidecar is.
pub const TOKEN_AUDIENCE: &str = "leno";
/// Folder into which the token is mounted.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/leno";
/// The token's file.
pub const TOKEN_PATH: &str = "/var/run/secrets/leno/token";
/// Seconds a token is good for; the kubelet renews it in time.
pub const TOKEN_SECONDS: u32 = 3600;
/// ConfigMap with the trusted roots, in every namespace labelled for injection.
pub const ROOT_CONFIG_MAP: &str = "leno-root";
/// Its key, and the file's name.
pub const ROOT_KEY: &str = "root.pem";
/// Folder into which it is mounted.
pub const ROOT_DIRECTORY: &str = "/etc/leno";
/// The roots' file.
pub const ROOT_PATH: &str = "/etc/leno/root.pem";
/// Folder for what the sidecar keeps.
pub const STATE_DIRECTORY: &str = "/var/lib/leno";

/// Namespace of the control plane.
pub const SYSTEM_NAMESPACE: &str = "leno-system";
/// Deployment, Service and ServiceAccount of the control plane.
pub const CONTROL_PLANE: &str = "leno-control-plane";
/// Where proxies go.
pub const CONTROL_PLANE_XDS: &str = "leno-control-plane.leno-system.svc:15012";
/// The control plane's port for proxies.
pub const XDS_PORT: u16 = 15012;
/// The control plane's port for people and tools.
pub const API_PORT: u16 = 15010;
/// The control plane's port for metrics and readiness.
pub const CONTROL_PLANE_METRICS_PORT: u16 = 15014;
/// The control plane's port for the Kubernetes API server.
pub const WEBHOOK_PORT: u16 = 15017;
/// Path of the mutating webhook.
pub const INJECT_PATH: &str = "/inject";
/// Path of the validating webhook.
pub const VALIDATE_PATH: &str = "/validate";
/// MutatingWebhookConfiguration and ValidatingWebhookConfiguration.
pub const WEBHOOK_CONFIGURATION: &str = "leno";

/// What image names begin with.
pub const IMAGE_PREFIX: &str = "leno";
/// Image of the sidecar after the prefix.
pub const PROXY_IMAGE: &str = "proxy";
/// Image of the control plane after the prefix.
pub const CONTROL_PLANE_IMAGE: &str = "control-plane";
/// Image of the container that writes the rules, after the prefix.
pub const REDIRECT_IMAGE_NAME: &str = "redirect";

/// Where the sidecar's program is in its image. The images have no shell: commands are lists of words.
pub const PROXY_PROGRAM: &str = "/usr/local/bin/leno-proxy";
