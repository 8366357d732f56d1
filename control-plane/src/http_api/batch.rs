//! Applying many objects at once, for `leno apply`: all or nothing where `atomic=true`, otherwise
//! each on its own. Each is applied as by server-side apply.
//!
//! `POST /apis/leno.dev/v1alpha1/apply?atomic=&dryRun=&fieldManager=&force=` with a JSON array.
//! Answers with an `ApplyResult`: `items` has, in the order sent, each object as it is now, or the
//! `Status` that says why not; `results` has for each `created`, `configured`, `unchanged`,
//! `deleted` or `failed`, and its warnings. An atomic apply that fails answers with one `Status`
//! instead, whose causes name the objects by their place: `[2].spec.ports[0].port`.

use std::collections::HashMap;

use axum::{
    Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::Method;
use leno_api::Resource;
use serde_json::{Value, json};

use super::{
    Api, Failure, MAX_BATCH_BYTES, MAX_BODY_BYTES, body,
    parameters::Parameters,
    resources::Place,
    warnings,
    write::{ATTEMPTS, Intent, Outcome, Plan, Writer, author},
};
use crate::{
    access::{Action, Caller, Target},
    objects::Author,
    store::{Error, Key, MAX_OPERATIONS},
};

pub(super) const PATH: &str = "/apis/leno.dev/v1alpha1/apply";
const DEFAULT_NAMESPACE: &str = "default";

/// One object of the batch, with what it is about as far as that can be told.
struct Entry {
    place: Place,
    key: Key,
    intent: Intent,
}

/// What became of it.
type Report = Result<Done, Failure>;

struct Done {
    outcome: Outcome,
    object: Value,
    resource: Resource,
}

struct Batch<'a> {
    api: &'a Api,
    caller: Caller,
    author: Author,
    parameters: Parameters,
    objects: Vec<Value>,
}

pub(super) async fn serve(
    api: &Api,
    caller: Caller,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        return Err(Failure::not_possible("apply with POST and a JSON array of objects"));
    }
    api.check_writable()?;
    let parameters = Parameters::parse(parts.uri.query())?;
    let author = author(parameters.manager(&parts.headers)?);
    let Value::Array(objects) = body::resource(body, &parts.headers, MAX_BATCH_BYTES).await? else {
        return Err(Failure::bad_request("the body must be a JSON array of objects"));
    };
    if objects.len() > MAX_OPERATIONS {
        return Err(Failure::bad_request(format!(
            "{} objects at once, at most {MAX_OPERATIONS} are possible",
            objects.len()
        )));
    }
    let _permit = api.writes.acquire().await.map_err(|_| Failure::from(Error::Closed))?;
    let batch = Batch { api, caller, author, parameters, objects };
    batch.apply().await
}

impl Batch<'_> {
    async fn apply(&self) -> Result<Response, Failure> {
        let entries = self.entries();
        let reports = if self.parameters.atomic {
            self.apply_together(entries).await?
        } else {
            self.apply_each(entries).await
        };
        self.respond(reports)
    }

    fn entries(&self) -> Vec<Result<Entry, Failure>> {
        let mut seen = HashMap::new();
        let entries = self.objects.iter().enumerate().map(|(index, object)| {
            let entry = self.entry(object)?;
            match seen.insert(entry.key.clone(), index) {
                None => Ok(entry),
                Some(first) => Err(Failure::bad_request(format!(
                    "{} stands twice, as objects {first} and {index}",
                    entry.key
                ))),
            }
        });
        entries.collect()
    }

    fn entry(&self, object: &Value) -> Result<Entry, Failure> {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        // What it is, and where: only the whole parser says well what is wrong with either.
        let (group, version) = text("/apiVersion").split_once('/').unwrap_or_default();
        let kind =
            leno_api::kind(group, version, text("/kind")).filter(|kind| kind.kind == text("/kind"));
        let kind = match (kind, Resource::from_json(object.clone())) {
            (Some(kind), _) => kind,
            (None, Ok(resource)) => resource.kind,
            (None, Err(invalid)) => return Err(Failure::bad_request(invalid.to_string())),
        };
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        if name.is_empty() {
            return Err(Failure::bad_request(format!("{}: metadata.name is missing", kind.kind)));
        }
        let target = Target { group: kind.group, plural: kind.plural, namespace: Some(namespace) };
        self.caller.may(Action::Write(target))?;
        let place = Place { kind, namespace: Some(namespace.to_owned()) };
        place.check_writable()?;
        let size = object.to_string().len();
        if size > MAX_BODY_BYTES {
            return Err(Failure::body_too_large(MAX_BODY_BYTES));
        }
        let intent = Intent::Apply { config: object.clone(), force: self.parameters.force };
        Ok(Entry { key: place.key(name), place, intent })
    }

    fn plan(&self, entry: &Entry) -> Result<Plan, Failure> {
        let author = self.author.clone();
        let writer = Writer { place: &entry.place, caller: &self.caller, author };
        let live = self.api.store.get(&entry.key);
        writer.plan(&entry.key, live.as_deref(), &entry.intent)
    }

    /// All in one transaction, or none.
    async fn apply_together(
        &self,
        entries: Vec<Result<Entry, Failure>>,
    ) -> Result<Vec<Report>, Failure> {
        if entries.iter().any(Result::is_err) {
            // None is applied, but what is wrong with any of them is told at once.
            let report = |entry: Result<Entry, Failure>| Ok(Done::of(self.plan(&entry?)?, None));
            return Ok(entries.into_iter().map(report).collect());
        }
        let entries: Vec<_> = entries.into_iter().flatten().collect();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let plans: Vec<_> = entries.iter().map(|entry| self.plan(entry)).collect();
            let mut revision = None;
            if plans.iter().all(Result::is_ok) && !self.parameters.dry_run {
                let operations = plans.iter().flatten().filter_map(|plan| plan.operation.clone());
                match self.api.store.commit(operations.collect()).await {
                    Ok(committed) => revision = Some(committed.revision),
                    Err(Error::Conflict { .. }) if attempts < ATTEMPTS => continue,
                    Err(error) => return Err(error.into()),
                }
                self.log(revision, plans.len());
            }
            let done = |plan: Result<Plan, Failure>| plan.map(|plan| Done::of(plan, revision));
            return Ok(plans.into_iter().map(done).collect());
        }
    }

    async fn apply_each(&self, entries: Vec<Result<Entry, Failure>>) -> Vec<Report> {
        let mut reports = Vec::with_capacity(entries.len());
        for entry in entries {
            reports.push(match entry {
                Ok(entry) => self.apply_one(&entry).await,
                Err(failure) => Err(failure),
            });
        }
        reports
    }

    async fn apply_one(&self, entry: &Entry) -> Report {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let plan = self.plan(entry)?;
            let operation = plan.operation.clone().filter(|_| !self.parameters.dry_run);
            let Some(operation) = operation else { return Ok(Done::of(plan, None)) };
            match self.api.store.commit(vec![operation]).await {
                Ok(committed) => {
                    self.log(Some(committed.revision), 1);
                    return Ok(Done::of(plan, Some(committed.revision)));
                }
                Err(Error::Conflict { .. }) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn log(&self, revision: Option<u64>, count: usize) {
        tracing::info!(revision, count, caller = %self.caller, manager = self.author.manager, "resources applied");
    }

    fn respond(&self, reports: Vec<Report>) -> Result<Response, Failure> {
        if self.parameters.atomic && reports.iter().any(Result::is_err) {
            let failures = reports.into_iter().enumerate();
            let failures = failures.filter_map(|(index, report)| Some((index, report.err()?)));
            return Err(Failure::of_many(failures.collect()));
        }
        let good: Vec<_> = reports.iter().flatten().map(|done| &done.resource).collect();
        let mut warnings = warnings::about_many(self.api, &good).into_iter();
        let (mut items, mut results, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for report in reports {
            match report {
                Ok(done) => {
                    let (key, own) = (done.resource.key(), warnings.next().unwrap_or_default());
                    all.extend(own.iter().map(|warning| format!("{key}: {warning}")));
                    results.push(json!({"outcome": done.outcome.word(), "warnings": own}));
                    items.push(done.object);
                }
                Err(failure) => {
                    results.push(json!({"outcome": "failed"}));
                    items.push(failure.to_json());
                }
            }
        }
        let answer = json!({
            "kind": "ApplyResult", "apiVersion": "leno.dev/v1alpha1",
            "metadata": {"resourceVersion": self.api.store.revision().to_string()},
            "items": items, "results": results,
        });
        let mut response = Json(answer).into_response();
        warnings::attach(&mut response, &all);
        Ok(response)
    }
}

impl Done {
    /// `revision` is that of the write, where there was one.
    fn of(plan: Plan, revision: Option<u64>) -> Self {
        let object = plan.answer(revision);
        Self { outcome: plan.outcome, object, resource: plan.resource }
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}
