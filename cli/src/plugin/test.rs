//! `leno plugin test`: a module on the desk.
//!
//! ```text
//! crate ─ build ─▶ module ─▶ desk ◀─ script (requests, services, properties, expectations)
//!                             ╰▶ exchange ─▶ outcome ─▶ judge, report
//! ```
//!
//! It runs in the host that the proxy runs it in, with the same limits, so that what is found here holds
//! there. Network and time are the script's: a minute passes at once, and every run is the same.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use leno_api::model::duration;
use leno_wasm_host::{
    CacheError, Digest, Engine, EngineSettings, Limits, Module, PluginSettings, StartError,
};

use self::{
    desk::Desk,
    script::{Case, Refusal, Script, configuration, property},
};
use crate::error::Error;

pub mod build;
mod desk;
mod exchange;
mod judge;
mod notes;
mod report;
mod script;

/// Try a plugin with requests from a file: what it does, what it takes; exits 1 if it is not as expected
#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// A .wasm file, or a crate, which is built first
    #[arg(default_value = ".", value_name = "MODULE|CRATE")]
    plugin: PathBuf,

    /// What to send and what to expect [default: requests.yaml of the crate]
    #[arg(short, long, value_name = "FILE")]
    requests: Option<PathBuf>,

    /// The plugin's configuration instead of the file's: JSON, or @FILE with it
    #[arg(short, long, value_name = "JSON|@FILE")]
    config: Option<String>,

    /// Which plugin of the module, where it has several (`pluginName` of a WasmPlugin)
    #[arg(long, default_value = "", value_name = "NAME")]
    root_id: String,

    /// How long one callback may take
    #[arg(long, default_value = "50ms", value_parser = duration::parse, value_name = "TIME")]
    deadline: Duration,

    /// Memory that it may have, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096), value_name = "MIB")]
    memory: u16,

    /// Keep native code here, so that the same module need not be compiled again
    #[arg(long, value_name = "DIR")]
    module_cache: Option<PathBuf>,

    /// Say only what is not as expected
    #[arg(short, long)]
    quiet: bool,
}

/// What a crate's requests are called.
const REQUESTS: &str = "requests.yaml";

pub fn run(args: &TestArgs, out: &mut impl Write) -> Result<ExitCode, Error> {
    let script = read_script(args)?;
    let module = build::module_of(&args.plugin)?;
    let mut test = Test {
        settings: settings(args, &script, &module)?,
        module: load(&module, args.module_cache.as_deref())?,
        script,
    };
    if !args.quiet {
        report::module(&module, &test.module.0, test.module.1, out)?;
    }
    let passed = test.run(args.quiet, out)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Test {
    module: (Module, Duration),
    settings: PluginSettings,
    script: Script,
}

impl Test {
    fn run(&mut self, quiet: bool, out: &mut impl Write) -> Result<bool, Error> {
        let mut count = report::Count::default();
        for (number, refusal) in self.script.refuses.iter().enumerate() {
            let wrong = self.refuses(refusal)?;
            count.add(&wrong);
            report::refusal(number + 1, &wrong, quiet, out)?;
        }
        let mut desk = self.desk(self.settings.clone())?;
        if let Err(error) = desk.start() {
            let notes = desk.world().borrow_mut().notes.take();
            report::notes(&notes, out)?;
            return Err(Error::Usage(format!("the plugin does not start: {error}")));
        }
        for (number, case) in self.script.requests.iter().enumerate() {
            for _ in 0..case.times.unwrap_or(1) {
                let wrong = self.case(&mut desk, number + 1, case, quiet, out)?;
                count.add(&wrong);
            }
        }
        if !quiet {
            report::summary(&desk, out)?;
        }
        writeln!(out, "{count}")?;
        Ok(count.failed == 0)
    }

    fn desk(&self, settings: PluginSettings) -> Result<Desk, Error> {
        Desk::new(&self.module.0, settings).map_err(|error| Error::Usage(error.to_string()))
    }

    fn case(
        &self,
        desk: &mut Desk,
        number: usize,
        case: &Case,
        quiet: bool,
        out: &mut impl Write,
    ) -> Result<Vec<String>, Error> {
        self.prepare(desk, case)?;
        let started = desk.start();
        let passed = desk.pass(case.after.0);
        let before = desk.world().borrow_mut().notes.take();
        let mut outcome = exchange::run(desk, &case.request, &case.upstream);
        outcome.notes.splice(0..0, before);
        if let Err(error) = started {
            outcome.fault = Some(format!("the plugin does not start again: {error}"));
        } else if let Err(fault) = passed {
            outcome.fault.get_or_insert(fault.to_string());
        }
        let wrong = judge::judge(&case.expect, &outcome);
        if !quiet || !wrong.is_empty() {
            report::case(number, case, &outcome, &wrong, out)?;
        }
        Ok(wrong)
    }

    /// Sets up services and properties: those of the request come first.
    fn prepare(&self, desk: &mut Desk, case: &Case) -> Result<(), Error> {
        let mut world = desk.world().borrow_mut();
        world.services = case.services.iter().chain(&self.script.services).cloned().collect();
        world.properties.clear();
        for (path, value) in self.script.properties.iter().chain(&case.properties) {
            let value = property(value).ok_or_else(|| {
                let allowed = "a text, a whole number, true, false, or a map of texts";
                Error::Usage(format!("the property `{path}` must be {allowed}"))
            })?;
            world.properties.insert(path.replace('.', "\0").into_bytes(), value);
        }
        Ok(())
    }

    /// Starts the plugin with a configuration that it must not take.
    fn refuses(&self, refusal: &Refusal) -> Result<Vec<String>, Error> {
        let configuration = configuration(&refusal.config);
        let mut desk = self.desk(PluginSettings { configuration, ..self.settings.clone() })?;
        let started = desk.start();
        let notes = desk.world().borrow_mut().notes.take();
        let what = &refusal.config;
        Ok(match started {
            Err(StartError::ConfigurationRefused) if judge::logged(&notes, &refusal.log) => {
                Vec::new()
            }
            Err(StartError::ConfigurationRefused) => {
                vec![format!("{what} is refused, but no line that is logged has `{}`", refusal.log)]
            }
            Err(error) => vec![format!("{what}: expected a refusal, got: {error}")],
            Ok(()) => vec![format!("{what} is not refused")],
        })
    }
}

fn settings(args: &TestArgs, script: &Script, module: &Path) -> Result<PluginSettings, Error> {
    let configuration = match &args.config {
        Some(given) => given_configuration(given)?,
        None => script.config.as_ref().map(configuration).unwrap_or_default(),
    };
    let limits = Limits {
        deadline: args.deadline,
        memory_bytes: usize::from(args.memory) << 20,
        ..Limits::default()
    };
    let name = module.file_stem().map(|name| name.to_string_lossy().into_owned());
    Ok(PluginSettings {
        name: name.unwrap_or_default(),
        root_id: args.root_id.clone(),
        configuration,
        limits,
        ..PluginSettings::default()
    })
}

/// JSON as it was typed, or the text of a JSON string, as in a resource; `@` names a file.
pub fn given_configuration(given: &str) -> Result<Vec<u8>, Error> {
    let text = match given.strip_prefix('@') {
        Some(file) => {
            fs::read_to_string(file).map_err(|error| unreadable(Path::new(file), &error))?
        }
        None => given.to_owned(),
    };
    let value = serde_json::from_str::<serde_json::Value>(&text);
    Ok(value.map_or_else(|_| text.into_bytes(), |value| configuration(&value)))
}

fn read_script(args: &TestArgs) -> Result<Script, Error> {
    let own = args.plugin.join(REQUESTS);
    let file = match &args.requests {
        Some(file) => file,
        None if own.is_file() => &own,
        None => return Ok(Script { requests: vec![Case::default()], ..Script::default() }),
    };
    let text = fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    Script::parse(&text).map_err(|problem| {
        let line = problem.line.map_or(String::new(), |line| format!(":{line}"));
        Error::Usage(format!("{}{line}: {problem}", file.display()))
    })
}

pub fn load(file: &Path, cache: Option<&Path>) -> Result<(Module, Duration), Error> {
    let bytes = fs::read(file).map_err(|error| unreadable(file, &error))?;
    let settings = EngineSettings { parallel_compilation: true, ..EngineSettings::default() };
    let begun = Instant::now();
    let engine = Engine::new(settings).map_err(|error| Error::Usage(error.to_string()))?;
    let unusable = |error: CacheError| Error::Usage(format!("the module cache: {error}"));
    if let Some(cache) = cache
        && let Some(module) =
            Module::load_cached(&engine, cache, Digest::of(&bytes)).map_err(unusable)?
    {
        return Ok((module, begun.elapsed()));
    }
    let module = Module::compile(&engine, &bytes)
        .map_err(|error| Error::Usage(format!("{}: {error}", file.display())))?;
    let took = begun.elapsed();
    if let Some(cache) = cache {
        module.save(cache).map_err(unusable)?;
    }
    Ok((module, took))
}

fn unreadable(file: &Path, error: &std::io::Error) -> Error {
    Error::Usage(format!("{} cannot be read: {error}", file.display()))
}
