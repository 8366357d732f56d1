//! What one pod asks for with labels and annotations.

use std::str::FromStr;

use leno_api::Invalid;
use leno_redirect::plan::{Choice, MAX_ENTRIES, Plan, Ports};

use super::{
    Redirect, Settings, drain_time,
    manifest::{Fields, join, object, text},
    names::{self, DISABLED, ENABLED},
    workload::Template,
};

/// What the sidecar asks for where nobody says otherwise: measured idle sidecars need a tenth.
const CPU: &str = "50m";
const MEMORY: &str = "64Mi";
/// Where a leak would be stopped. There is no limit of CPU: it would add latency when it is needed most.
const MEMORY_LIMIT: &str = "512Mi";
/// What our own annotations begin with.
const OWN: &str = "leno.dev/";
/// Annotations of pods that others of this house read.
const KNOWN: [&str; 2] = [names::INJECT_LABEL, names::INJECTED];

/// What one pod asks for.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    pub image: String,
    pub redirect_image: String,
    pub native: bool,
    pub redirect: Redirect,
    pub cpu: Option<String>,
    pub cpu_limit: Option<String>,
    pub memory: Option<String>,
    pub memory_limit: Option<String>,
    pub log: Option<String>,
    pub access_log: Option<String>,
    /// Seconds.
    pub drain: u32,
    pub rewrite_probes: bool,
    /// Flags of the rules with their values, only those that somebody set.
    pub rules: Vec<(&'static str, String)>,
}

/// Lists of the rules: annotation, flag, whether `*` is all.
pub(super) const RULES: [(&str, &str, bool); 7] = [
    (names::INCLUDE_OUTBOUND_PORTS, "--include-outbound-ports", false),
    (names::EXCLUDE_OUTBOUND_PORTS, "--exclude-outbound-ports", false),
    (names::INCLUDE_OUTBOUND_RANGES, "--include-outbound-ranges", true),
    (names::EXCLUDE_OUTBOUND_RANGES, "--exclude-outbound-ranges", false),
    (names::INCLUDE_INBOUND_PORTS, "--include-inbound-ports", true),
    (names::EXCLUDE_INBOUND_PORTS, "--exclude-inbound-ports", false),
    (names::EXCLUDE_INTERFACES, "--exclude-interfaces", false),
];

/// Why a pod does not want a sidecar, if it says so.
///
/// # Errors
/// When it says something that means neither yes nor no.
pub(super) fn opted_out(template: &Template<'_>) -> Result<Option<String>, Invalid> {
    let path = template.at("metadata");
    let Some(metadata) = object(template.fields, "metadata", &template.path)? else {
        return Ok(None);
    };
    for (kind, key, [yes, no]) in [
        ("labels", names::INJECT_LABEL, [ENABLED, DISABLED]),
        ("annotations", names::INJECT_LABEL, [ENABLED, DISABLED]),
        ("labels", names::ISTIO_INJECT, ["true", "false"]),
        ("annotations", names::ISTIO_INJECT, ["true", "false"]),
    ] {
        let place = join(&path, kind);
        let Some(fields) = object(metadata, kind, &path)? else { continue };
        match text(fields, key, &place)? {
            None => {}
            Some(word) if word == yes => return Ok(None),
            Some(word) if word == no => {
                let one = kind.trim_end_matches('s');
                return Ok(Some(format!("it asks for none (its {one} {key} is {no})")));
            }
            Some(word) => {
                let message = format!("`{word}` must be `{yes}` or `{no}`");
                return Err(Invalid::one(join(&place, key), message));
            }
        }
    }
    Ok(None)
}

/// What the pod's annotations say, and where they say nothing what the mesh's settings say.
///
/// # Errors
/// Every annotation that cannot be used.
pub(super) fn read(
    template: &Template<'_>,
    settings: &Settings,
    warnings: &mut Vec<String>,
) -> Result<Wishes, Invalid> {
    let nothing = Fields::new();
    let metadata = object(template.fields, "metadata", &template.path)?.unwrap_or(&nothing);
    let at = template.at("metadata");
    let fields = object(metadata, "annotations", &at)?.unwrap_or(&nothing);
    let mut reader = Reader { fields, path: join(&at, "annotations"), problems: Vec::new() };
    let image = |name: &str| format!("{}/{name}:{}", settings.image_prefix, settings.image_tag);
    let (cpu, cpu_limit) = reader.resource([names::PROXY_CPU, names::PROXY_CPU_LIMIT], CPU);
    let (memory, memory_limit) =
        reader.resource([names::PROXY_MEMORY, names::PROXY_MEMORY_LIMIT], MEMORY);
    // Who asks for more than our limit must not be refused for it.
    let memory_limit = memory_limit
        .or_else(|| (!fields.contains_key(names::PROXY_MEMORY)).then(|| MEMORY_LIMIT.to_owned()));
    let wishes = Wishes {
        image: reader.nonempty(names::IMAGE).unwrap_or_else(|| image(names::PROXY_IMAGE)),
        redirect_image: reader
            .nonempty(names::REDIRECT_IMAGE)
            .unwrap_or_else(|| image(names::REDIRECT_IMAGE_NAME)),
        native: reader.boolean(names::NATIVE_SIDECAR).unwrap_or(settings.native_sidecar),
        redirect: reader.parsed(names::REDIRECT, redirect).unwrap_or(settings.redirect),
        cpu,
        cpu_limit,
        memory,
        memory_limit,
        log: reader.parsed(names::LOG_LEVEL, log),
        access_log: reader.parsed(names::ACCESS_LOG, access_log),
        drain: reader.parsed(names::DRAIN_TIME, drain_time).unwrap_or(settings.sidecar_drain),
        rewrite_probes: reader.boolean(names::REWRITE_PROBES).unwrap_or(true),
        rules: reader.rules(),
    };
    warnings.extend(reader.unknown());
    if reader.problems.is_empty() { Ok(wishes) } else { Err(Invalid { problems: reader.problems }) }
}

struct Reader<'a> {
    fields: &'a Fields,
    path: String,
    problems: Vec<leno_api::Problem>,
}

impl Reader<'_> {
    fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let place = join(&self.path, key);
        let value = match text(self.fields, key, &self.path) {
            Ok(value) => value?,
            Err(invalid) => {
                self.problems.extend(invalid.problems);
                return None;
            }
        };
        match parse(value.trim()) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problems.extend(Invalid::one(place, message).problems);
                None
            }
        }
    }

    fn nonempty(&mut self, key: &str) -> Option<String> {
        self.parsed(key, |text| match text.is_empty() {
            true => Err("must not be empty: leave it out for the default".to_owned()),
            false => Ok(text.to_owned()),
        })
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        self.parsed(key, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("`{other}` must be \"true\" or \"false\"")),
        })
    }

    fn rules(&mut self) -> Vec<(&'static str, String)> {
        let mut rules = Vec::new();
        let mut plan = Plan::default();
        for (key, flag, all) in RULES {
            let read = self.parsed(key, |text| {
                let listed = entries(text, all)?;
                plan_with(&mut plan, key, &listed)?;
                Ok(listed)
            });
            rules.extend(read.map(|text| (flag, text)));
        }
        // What the container that writes the rules would refuse, when the pod has been made.
        if let Err(invalid) = plan.check() {
            self.problems.extend(Invalid::one(self.path.clone(), invalid.to_string()).problems);
        }
        rules
    }

    /// What is asked for and what is the limit. With a limit alone, Kubernetes takes that for both.
    fn resource(
        &mut self,
        [request, limit]: [&str; 2],
        default: &str,
    ) -> (Option<String>, Option<String>) {
        let wanted = self.parsed(request, quantity);
        let most = self.parsed(limit, quantity);
        if let (Some(wanted), Some(most)) = (&wanted, &most)
            && wanted.1 > most.1
        {
            let message = format!("`{}` is less than {request}, `{}`", most.0, wanted.0);
            self.problems.extend(Invalid::one(join(&self.path, limit), message).problems);
        }
        let is_bounded = self.fields.contains_key(limit);
        let default = (!is_bounded).then(|| default.to_owned());
        (wanted.map(|(text, _)| text).or(default), most.map(|(text, _)| text))
    }

    /// Annotations that look like ours and mean nothing: mostly a slip of the pen.
    fn unknown(&self) -> Vec<String> {
        let ours = self.fields.keys().filter(|key| key.starts_with(OWN) && !is_known(key));
        ours.map(|key| {
            format!("{}: means nothing to injection; is it misspelt?", join(&self.path, key))
        })
        .collect()
    }
}

fn is_known(key: &str) -> bool {
    let others = [
        names::IMAGE,
        names::REDIRECT_IMAGE,
        names::NATIVE_SIDECAR,
        names::PROXY_CPU,
        names::PROXY_CPU_LIMIT,
        names::PROXY_MEMORY,
        names::PROXY_MEMORY_LIMIT,
        names::LOG_LEVEL,
        names::ACCESS_LOG,
        names::DRAIN_TIME,
        names::REDIRECT,
        names::REWRITE_PROBES,
    ];
    KNOWN.contains(&key) || others.contains(&key) || RULES.iter().any(|(known, ..)| *known == key)
}

fn redirect(text: &str) -> Result<Redirect, String> {
    match text {
        "init" => Ok(Redirect::Init),
        "cni" => Ok(Redirect::Cni),
        "none" => Ok(Redirect::None),
        other => Err(format!("`{other}` must be `init`, `cni` or `none`")),
    }
}

fn access_log(text: &str) -> Result<String, String> {
    match text {
        "off" | "text" | "json" => Ok(text.to_owned()),
        other => Err(format!("`{other}` must be `off`, `text` or `json`")),
    }
}

fn log(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must not be empty: leave it out for the default".to_owned());
    }
    leno_daemon::logs::check(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// A quantity as Kubernetes writes it (`100m`, `0.5`, `64Mi`, `1e3`), and how much that is.
fn quantity(text: &str) -> Result<(String, f64), String> {
    const SUFFIXES: [(&str, f64); 16] = [
        ("", 1.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
    ];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let known = SUFFIXES.iter().find(|(known, _)| *known == suffix).map(|(_, factor)| *factor);
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i8>().ok());
    let factor = known.or_else(|| exponent.map(|exponent| 10f64.powi(exponent.into())));
    match (number.parse::<f64>(), factor) {
        (Ok(number), Some(factor)) => Ok((text.to_owned(), number * factor)),
        _ => Err(format!("`{text}` is not a quantity: write `100m`, `0.5` or `64Mi`")),
    }
}

/// A list with commas, in order and without spaces.
fn entries(text: &str, all: bool) -> Result<String, String> {
    if text == "*" && all {
        return Ok(text.to_owned());
    }
    let entries: Vec<&str> =
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.len() > MAX_ENTRIES {
        return Err(format!("has {} entries, there may be {MAX_ENTRIES}", entries.len()));
    }
    Ok(entries.join(","))
}

/// The plan of the rules with the list of one annotation.
fn plan_with(plan: &mut Plan, key: &str, listed: &str) -> Result<(), String> {
    match key {
        names::INCLUDE_OUTBOUND_PORTS => plan.include_outbound_ports = read_list(listed)?,
        names::EXCLUDE_OUTBOUND_PORTS => plan.exclude_outbound_ports = read_list(listed)?,
        names::INCLUDE_OUTBOUND_RANGES => plan.include_outbound_ranges = choice(listed)?,
        names::EXCLUDE_OUTBOUND_RANGES => plan.exclude_outbound_ranges = read_list(listed)?,
        names::INCLUDE_INBOUND_PORTS => plan.include_inbound_ports = choice(listed)?,
        // Beside the sidecar's own, which never are captured; as the flag does.
        names::EXCLUDE_INBOUND_PORTS => {
            for ports in read_list::<Ports>(listed)? {
                if !plan.exclude_inbound_ports.contains(&ports) {
                    plan.exclude_inbound_ports.push(ports);
                }
            }
        }
        _ => plan.exclude_interfaces = read_list(listed)?,
    }
    Ok(())
}

fn choice<T: FromStr<Err = String>>(listed: &str) -> Result<Choice<T>, String> {
    if listed == "*" { Ok(Choice::All) } else { read_list(listed).map(Choice::Only) }
}

fn read_list<T: FromStr<Err = String>>(listed: &str) -> Result<Vec<T>, String> {
    listed.split(',').filter(|entry| !entry.is_empty()).map(str::parse).collect()
}
