//! What one pod asks for with labels and annotations.

use leno_api::{Invalid, model::ip_block::IpBlock};

use super::{
    Redirect, Settings, drain_time,
    manifest::{Fields, join, object, text},
    names::{self, DISABLED, ENABLED},
    workload::Template,
};

/// Entries of one list of ports, ranges or interfaces, as the rules take them: each new connection is compared with all.
const MAX_ENTRIES: usize = 256;
/// Characters of an interface's name (`IFNAMSIZ` without its end).
const MAX_INTERFACE: usize = 15;
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
    pub cpu: String,
    pub cpu_limit: Option<String>,
    pub memory: String,
    pub memory_limit: Option<String>,
    pub log: Option<String>,
    pub access_log: Option<String>,
    /// Seconds.
    pub drain: u32,
    pub rewrite_probes: bool,
    /// Flags of the rules with their values, only those that somebody set.
    pub rules: Vec<(&'static str, String)>,
}

/// Lists of the rules: annotation, flag, what an entry is, whether `*` is all.
const RULES: [(&str, &str, Entry, bool); 7] = [
    (names::INCLUDE_OUTBOUND_PORTS, "--include-outbound-ports", Entry::Port, false),
    (names::EXCLUDE_OUTBOUND_PORTS, "--exclude-outbound-ports", Entry::Port, false),
    (names::INCLUDE_OUTBOUND_RANGES, "--include-outbound-ranges", Entry::Range, true),
    (names::EXCLUDE_OUTBOUND_RANGES, "--exclude-outbound-ranges", Entry::Range, false),
    (names::INCLUDE_INBOUND_PORTS, "--include-inbound-ports", Entry::Port, true),
    (names::EXCLUDE_INBOUND_PORTS, "--exclude-inbound-ports", Entry::Port, false),
    (names::EXCLUDE_INTERFACES, "--exclude-interfaces", Entry::Interface, false),
];

#[derive(Clone, Copy, Debug)]
enum Entry {
    Port,
    Range,
    Interface,
}

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
    let wishes = Wishes {
        image: reader.nonempty(names::IMAGE).unwrap_or_else(|| image(names::PROXY_IMAGE)),
        redirect_image: reader
            .nonempty(names::REDIRECT_IMAGE)
            .unwrap_or_else(|| image(names::REDIRECT_IMAGE_NAME)),
        native: reader.boolean(names::NATIVE_SIDECAR).unwrap_or(settings.native_sidecar),
        redirect: reader.parsed(names::REDIRECT, redirect).unwrap_or(settings.redirect),
        cpu: reader.parsed(names::PROXY_CPU, quantity).unwrap_or_else(|| CPU.to_owned()),
        cpu_limit: reader.parsed(names::PROXY_CPU_LIMIT, quantity),
        // Who asks for more than our limit must not be refused for it.
        memory_limit: reader.parsed(names::PROXY_MEMORY_LIMIT, quantity).or_else(|| {
            (!fields.contains_key(names::PROXY_MEMORY)).then(|| MEMORY_LIMIT.to_owned())
        }),
        memory: reader.parsed(names::PROXY_MEMORY, quantity).unwrap_or_else(|| MEMORY.to_owned()),
        log: reader.nonempty(names::LOG_LEVEL),
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
        for (key, flag, entry, all) in RULES {
            rules.extend(
                self.parsed(key, |text| entries(text, entry, all)).map(|text| (flag, text)),
            );
        }
        rules
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

/// A quantity as Kubernetes writes it: `100m`, `0.5`, `64Mi`, `1e3`.
fn quantity(text: &str) -> Result<String, String> {
    const SUFFIXES: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).filter(|digits| !digits.is_empty());
    let exponent = exponent.is_some_and(|digits| digits.parse::<i8>().is_ok());
    if number.parse::<f64>().is_ok() && (SUFFIXES.contains(&suffix) || exponent) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is not a quantity: write `100m`, `0.5` or `64Mi`"))
}

/// A list with commas, in order and without spaces.
fn entries(text: &str, entry: Entry, all: bool) -> Result<String, String> {
    if text == "*" && all {
        return Ok(text.to_owned());
    }
    let entries: Vec<&str> =
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.len() > MAX_ENTRIES {
        return Err(format!("has {} entries, there may be {MAX_ENTRIES}", entries.len()));
    }
    for text in &entries {
        match entry {
            Entry::Port => ports(text)?,
            Entry::Range => drop(IpBlock::parse(text)?),
            Entry::Interface => interface(text)?,
        }
    }
    Ok(entries.join(","))
}

/// `80` or `8000-8099`.
fn ports(text: &str) -> Result<(), String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(()),
        _ => Err(format!("`{text}` is no port: write `8080` or `8000-8099`, several with commas")),
    }
}

fn interface(text: &str) -> Result<(), String> {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let name = text.strip_suffix('*').unwrap_or(text);
    if text.len() <= MAX_INTERFACE && name.chars().all(ordinary) {
        return Ok(());
    }
    Err(format!("`{text}` is no name of a network interface"))
}
