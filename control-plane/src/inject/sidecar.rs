//! What is added to a pod.

use leno_api::Invalid;
use leno_redirect::cni::BY_PLUGIN;
use serde_json::{Value, json};

use super::{
    Redirect, Settings,
    manifest::{join, made_list, made_object, text},
    names, obstacles, probes,
    record::{GRACE, Record},
    wishes::Wishes,
    workload::Template,
};

/// Kubernetes gives a pod this long to end where its manifest does not say.
const DEFAULT_GRACE: u64 = 30;
/// What a pod's end takes beside the sidecar's own time, in seconds: the hook before it, and the kubelet.
const END_MARGIN: u64 = 5;
/// So many seconds may a new pod wait for its sidecar: certificate and configuration come within one.
const START_SECONDS: u64 = 60;
/// Disk a sidecar may use for what it keeps: its cache of plugins grows to 1 GiB, and a pod that goes beyond is evicted.
const STATE_LIMIT: &str = "1280Mi";
/// Which container `kubectl logs` shows.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Adds containers and volumes, leads probes through the sidecar, and writes down what was done.
///
/// # Errors
/// When the pod is not as pods must be; it is then half done, and to be thrown away.
pub(super) fn add(
    template: &mut Template<'_>,
    wishes: &Wishes,
    settings: &Settings,
    warnings: &mut Vec<String>,
) -> Result<(), Invalid> {
    if template.ends && !wishes.native {
        warnings.push(format!(
            "{}: a classic sidecar does not end with its job: use native sidecars ({}), or let the job call POST http://127.0.0.1:{}/quitquitquit at its end",
            template.at("spec"), names::NATIVE_SIDECAR, names::ADMIN_PORT
        ));
    }
    let path = template.at("spec");
    if wishes.redirect != Redirect::None {
        warnings.extend(obstacles::hooks(template)?);
    }
    let ends = wishes.drain;
    let mut record = Record { version: settings.image_tag.clone(), ..Record::default() };
    let (spec, _) = made_object(template.fields, "spec", &template.path)?;

    let mut rewritten = probes::Rewritten::default();
    if wishes.rewrite_probes {
        for list in obstacles::LISTS {
            let Some(Value::Array(containers)) = spec.get_mut(list) else { continue };
            for (at, container) in containers.iter_mut().enumerate() {
                let Some(container) = container.as_object_mut() else { continue };
                let place = format!("{}[{at}]", join(&path, list));
                probes::rewrite(container, &place, &mut rewritten, warnings)?;
            }
        }
    }
    let targets = Value::Object(rewritten.targets);
    record.probes = rewritten.originals;
    let first = first_container(spec, &path)?;

    let proxy = proxy(wishes, settings, &targets);
    let (init, made) = made_list(spec, "initContainers", &path)?;
    let before = init.len();
    let mut added = Vec::new();
    if wishes.native {
        init.insert(0, proxy.clone());
        added.push(names::PROXY_CONTAINER);
    }
    if wishes.redirect == Redirect::Init {
        // Beside a classic sidecar, which is not there yet, the application's own init containers go first.
        init.insert(if wishes.native { 0 } else { before }, redirect(wishes));
        added.push(names::REDIRECT_CONTAINER);
    }
    if wishes.redirect == Redirect::Cni && !wishes.native && before > 0 {
        warnings.push(format!(
            "{path}.initContainers: with {} cni they are led to a sidecar that only starts after them: those that use the network need {} or the user id {}",
            names::REDIRECT, names::NATIVE_SIDECAR, names::PROXY_USER
        ));
    }
    if init.is_empty() {
        super::manifest::unmake(spec, "initContainers", made);
    } else {
        record.made.extend(made.map(|absent| ("initContainers".to_owned(), absent)));
        let added = added.into_iter().map(str::to_owned).collect();
        record.containers.insert("initContainers".to_owned(), added);
    }
    if !wishes.native {
        let (containers, _) = made_list(spec, "containers", &path)?;
        containers.insert(0, proxy);
        let added = vec![names::PROXY_CONTAINER.to_owned()];
        record.containers.insert("containers".to_owned(), added);
    }

    let (volumes, made) = made_list(spec, "volumes", &path)?;
    record.made.extend(made.map(|absent| ("volumes".to_owned(), absent)));
    for volume in added_volumes() {
        record.volumes.extend(volume["name"].as_str().map(str::to_owned));
        volumes.push(volume);
    }

    let needed = u64::from(ends) + END_MARGIN;
    let grace = spec.get(GRACE).cloned().unwrap_or(Value::Null);
    if grace.as_u64().unwrap_or(DEFAULT_GRACE) < needed && (grace.is_null() || grace.is_u64()) {
        spec.insert(GRACE.to_owned(), needed.into());
        record.grace = Some(grace);
    }
    if !wishes.native {
        // Ours is the first container then, and nobody wants to read its log first.
        annotate(template, DEFAULT_CONTAINER, first, &mut record)?;
    }
    if wishes.redirect == Redirect::Cni {
        // The plugin on the node knows nothing of the mesh's settings.
        annotate(template, names::REDIRECT, BY_PLUGIN.to_owned(), &mut record)?;
    }
    record.write(template)
}

/// Leads through the sidecar, which is there, the probes that somebody else added since: another webhook with a container
/// of its own, for example. Whether there were any. Whatever else was done to our containers stays.
///
/// # Errors
/// When the pod is not as pods must be; it is then half done, and to be thrown away.
pub(super) fn catch_up(
    template: &mut Template<'_>,
    wishes: &Wishes,
    mut record: Record,
    warnings: &mut Vec<String>,
) -> Result<bool, Invalid> {
    if !wishes.rewrite_probes {
        return Ok(false);
    }
    let path = template.at("spec");
    let (spec, _) = made_object(template.fields, "spec", &template.path)?;
    let mut rewritten = probes::Rewritten::default();
    let mut said = Vec::new();
    for list in obstacles::LISTS {
        let ours = record.containers.get(list).map(Vec::as_slice).unwrap_or_default();
        let Some(Value::Array(containers)) = spec.get_mut(list) else { continue };
        for (at, container) in containers.iter_mut().enumerate() {
            let Some(container) = container.as_object_mut() else { continue };
            let place = format!("{}[{at}]", join(&path, list));
            let name = text(container, "name", &place)?.unwrap_or_default();
            if !ours.iter().any(|known| known == name) {
                probes::rewrite(container, &place, &mut rewritten, &mut said)?;
            }
        }
    }
    if rewritten.targets.is_empty() || !probes::ask_for(spec, rewritten.targets) {
        return Ok(false);
    }
    warnings.append(&mut said);
    for (name, fields) in rewritten.originals {
        let known = record.probes.entry(name).or_insert_with(|| json!({}));
        for (field, probe) in fields.as_object().into_iter().flatten() {
            known[field] = probe.clone();
        }
    }
    record.write(template)?;
    Ok(true)
}

fn first_container(spec: &super::manifest::Fields, path: &str) -> Result<String, Invalid> {
    let containers = super::manifest::objects(spec, "containers", path)?;
    let Some((at, container)) = containers.first() else { return Ok(String::new()) };
    Ok(text(container, "name", at)?.unwrap_or_default().to_owned())
}

/// Adds an annotation, unless the pod has one of that name.
fn annotate(
    template: &mut Template<'_>,
    key: &str,
    value: String,
    record: &mut Record,
) -> Result<(), Invalid> {
    let at = template.at("metadata");
    let (metadata, made) = made_object(template.fields, "metadata", &template.path)?;
    record.made.extend(made.map(|absent| ("metadata".to_owned(), absent)));
    let (annotations, made) = made_object(metadata, "annotations", &at)?;
    record.made.extend(made.map(|absent| ("annotations".to_owned(), absent)));
    if !annotations.contains_key(key) {
        annotations.insert(key.to_owned(), value.into());
        record.annotations.push(key.to_owned());
    }
    Ok(())
}

/// The sidecar's container.
fn proxy(wishes: &Wishes, settings: &Settings, probes: &Value) -> Value {
    let mut container = json!({
        "name": names::PROXY_CONTAINER,
        "image": wishes.image,
        "env": environment(wishes, settings, probes),
        "ports": [{"name": "leno-metrics", "containerPort": names::METRICS_PORT, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": names::READY_PORT},
            "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 2,
        },
        "lifecycle": {"preStop": {"exec": {"command": [names::PROXY_PROGRAM, "drain"]}}},
        "resources": resources(wishes),
        "securityContext": {
            "runAsUser": names::PROXY_USER, "runAsGroup": names::PROXY_GROUP, "runAsNonRoot": true,
            "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": names::TOKEN_VOLUME, "mountPath": names::TOKEN_DIRECTORY, "readOnly": true},
            {"name": names::ROOT_VOLUME, "mountPath": names::ROOT_DIRECTORY, "readOnly": true},
            {"name": names::STATE_VOLUME, "mountPath": names::STATE_DIRECTORY},
        ],
    });
    if wishes.native {
        container["restartPolicy"] = "Always".into();
        container["startupProbe"] = json!({
            "httpGet": {"path": "/ready", "port": names::READY_PORT},
            "periodSeconds": 1, "failureThreshold": START_SECONDS, "timeoutSeconds": 2,
        });
    } else {
        // Kubernetes starts the next container only when this hook has ended.
        container["lifecycle"]["postStart"] = json!({"exec": {"command": [
            names::PROXY_PROGRAM, "wait", "--time", START_SECONDS.to_string(),
        ]}});
    }
    container
}

/// What the sidecar knows.
fn environment(wishes: &Wishes, settings: &Settings, targets: &Value) -> Vec<Value> {
    // Kubernetes would put other variables in place of `$(NAME)`.
    let plain =
        |name: &str, value: String| json!({"name": name, "value": value.replace('$', "$$")});
    let of_pod = |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": field}}});
    let port = |host: &str, port: u16| format!("{host}:{port}");
    let mut environment = vec![
        of_pod("LENO_NAME", "metadata.name"),
        of_pod("LENO_NAMESPACE", "metadata.namespace"),
        of_pod("LENO_ADDRESS", "status.podIP"),
        of_pod("LENO_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        plain("LENO_CONTROL_PLANE", settings.sidecar_control_plane.clone()),
        plain("LENO_CA_FILE", names::ROOT_PATH.to_owned()),
        plain("LENO_TOKEN_FILE", names::TOKEN_PATH.to_owned()),
        plain("LENO_STATE_DIR", names::STATE_DIRECTORY.to_owned()),
        plain("LENO_ADMIN", port("127.0.0.1", names::ADMIN_PORT)),
        plain("LENO_READY", port("[::]", names::READY_PORT)),
        plain("LENO_METRICS", port("[::]", names::METRICS_PORT)),
        plain("LENO_DRAIN", wishes.drain.to_string()),
    ];
    if wishes.redirect != Redirect::None {
        environment.push(plain("LENO_CAPTURE", "true".to_owned()));
    }
    let log = wishes.log.clone().map(|log| plain("LENO_LOG", log));
    environment.extend(log);
    environment.extend(wishes.access_log.clone().map(|log| plain("LENO_ACCESS_LOG", log)));
    if targets.as_object().is_some_and(|targets| !targets.is_empty()) {
        environment.push(plain(probes::PROBES, targets.to_string()));
    }
    environment
}

fn resources(wishes: &Wishes) -> Value {
    let mut resources = json!({});
    for (kind, what, quantity) in [
        ("requests", "cpu", &wishes.cpu),
        ("requests", "memory", &wishes.memory),
        ("limits", "cpu", &wishes.cpu_limit),
        ("limits", "memory", &wishes.memory_limit),
    ] {
        if let Some(quantity) = quantity {
            resources[kind][what] = quantity.clone().into();
        }
    }
    resources
}

/// The container that writes the rules and ends.
fn redirect(wishes: &Wishes) -> Value {
    let mut arguments = vec!["install".to_owned()];
    for (flag, value) in &wishes.rules {
        arguments.extend([(*flag).to_owned(), value.clone()]);
    }
    json!({
        "name": names::REDIRECT_CONTAINER,
        "image": wishes.redirect_image,
        "args": arguments,
        // The root file system cannot be written; iptables wants a file to lock.
        "env": [{"name": "XTABLES_LOCKFILE", "value": "/dev/shm/xtables.lock"}],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"},
        },
        "securityContext": {
            "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "privileged": false,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn added_volumes() -> [Value; 3] {
    let token = json!({"serviceAccountToken": {
        "audience": names::TOKEN_AUDIENCE, "expirationSeconds": names::TOKEN_SECONDS, "path": "token",
    }});
    [
        json!({"name": names::TOKEN_VOLUME, "projected": {"sources": [token]}}),
        json!({"name": names::ROOT_VOLUME, "configMap": {"name": names::ROOT_CONFIG_MAP}}),
        json!({"name": names::STATE_VOLUME, "emptyDir": {"sizeLimit": STATE_LIMIT}}),
    ]
}
