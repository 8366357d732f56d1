//! Metrics that the plugin defines.

use std::sync::Arc;

use wasmtime::{Caller, Linker};

use super::{ENV, parts, status};
use crate::{
    abi::{MetricKind, Status},
    embedder::Host,
    guest::{GuestPtr, GuestSlice},
    shared::Metric,
    state::State,
};

pub(super) fn link<H: Host>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker
        .func_wrap(ENV, "proxy_define_metric", define::<H>)?
        .func_wrap(ENV, "proxy_increment_metric", increment::<H>)?
        .func_wrap(ENV, "proxy_record_metric", record::<H>)?
        .func_wrap(ENV, "proxy_get_metric", read::<H>)?;
    Ok(())
}

fn define<H: Host>(
    mut caller: Caller<'_, State<H>>,
    kind: u32,
    name: u32,
    name_length: u32,
    result: u32,
) -> u32 {
    let mut define = || {
        let (memory, state) = parts(&mut caller)?;
        let name = GuestSlice::new(name, name_length).read(memory)?;
        let kind = MetricKind::from_guest(kind)?;
        GuestPtr::<u32>::new(result).check(memory)?;
        let (settings, most) = (&state.settings, state.settings.limits.metrics);
        let metric = settings.shared.metrics.define(most, kind, name)?;
        GuestPtr::new(result).write(memory, state.metric_id(kind, metric)?)
    };
    status(define())
}

impl<H: Host> State<H> {
    /// The plugin's number for a metric: the same for the same metric, so that a plugin which defines
    /// in every request does not grow. The low two bits are the kind, and each kind counts from 1.
    fn metric_id(&mut self, kind: MetricKind, metric: Arc<Metric>) -> Result<u32, Status> {
        let defined: usize = self.metrics.iter().map(Vec::len).sum();
        let of_kind = self.metrics.get_mut(kind as usize).ok_or(Status::InternalFailure)?;
        let index = match of_kind.iter().position(|known| Arc::ptr_eq(known, &metric)) {
            Some(index) => index,
            None if defined >= self.settings.limits.metrics => {
                return Err(Status::InternalFailure);
            }
            None => {
                of_kind.push(metric);
                of_kind.len() - 1
            }
        };
        let index = u32::try_from(index + 1).map_err(|_| Status::InternalFailure)?;
        Ok(index << 2 | kind as u32)
    }

    fn metric(&self, id: u32) -> Result<&Metric, Status> {
        let index = (id as usize >> 2).checked_sub(1).ok_or(Status::NotFound)?;
        let of_kind = self.metrics.get(id as usize & 3).ok_or(Status::NotFound)?;
        of_kind.get(index).map(Arc::as_ref).ok_or(Status::NotFound)
    }
}

fn increment<H: Host>(mut caller: Caller<'_, State<H>>, id: u32, delta: i64) -> u32 {
    let mut increment = || parts(&mut caller)?.1.metric(id)?.increment(delta);
    status(increment())
}

fn record<H: Host>(mut caller: Caller<'_, State<H>>, id: u32, value: u64) -> u32 {
    let mut record = || {
        parts(&mut caller)?.1.metric(id)?.record(value);
        Ok(())
    };
    status(record())
}

fn read<H: Host>(mut caller: Caller<'_, State<H>>, id: u32, result: u32) -> u32 {
    let mut read = || {
        let (memory, state) = parts(&mut caller)?;
        let value = state.metric(id)?.read()?;
        GuestPtr::<u64>::new(result).write(memory, value)
    };
    status(read())
}
