//! How many requests the application beside us is given at once. Pure: `now` is the time since any fixed start, and
//! where it goes backwards no time has passed; random numbers come in as arguments.
//!
//! An application that gets more than it can do at once answers all of it late, then nothing in time. Here the excess
//! waits for a moment, and is refused while refusing still helps: the caller can go elsewhere, and what is begun is
//! finished.
//!
//! - [`gradient`]: the limit, found by watching how long answers take. One for an application, fed every 100 ms.
//! - [`gate`]: who is let in within the limit, who waits, who is refused, by priority. One for each worker.
//! - [`queue`]: those of one priority that wait: for a moment only, where they keep coming (CoDel).
//! - [`shares`]: the limit, divided among the workers.

pub mod gate;
pub mod gradient;
pub mod queue;

/// Divides `limit` among workers by what each has under way and waiting: nobody gets less than an equal share that it
/// could use, and what some do not need is for the others (max-min fairness). What nobody needs is divided equally, so
/// that a burst finds room on any worker. The sum is `limit`.
pub fn shares(limit: u32, demands: &[u32]) -> Vec<u32> {
    let mut shares = vec![0u32; demands.len()];
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by_key(|at| demands[*at]);
    let mut left = limit;
    let mut others = u32::try_from(demands.len()).unwrap_or(u32::MAX);
    for at in &order {
        shares[*at] = demands[*at].min(left / others.max(1));
        left -= shares[*at];
        others -= 1;
    }
    // From the greatest demand down, so that the odd ones go where they are needed.
    let mut count = u32::try_from(demands.len()).unwrap_or(u32::MAX);
    for at in order.iter().rev() {
        let more = left.div_ceil(count.max(1));
        shares[*at] += more;
        left -= more;
        count -= 1;
    }
    shares
}

#[cfg(test)]
mod tests;
