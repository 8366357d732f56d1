//! Memory that was freed. mimalloc keeps it for a second in case it is needed again, and looks whether that second
//! is over only when more is freed: a thread that has become idle keeps for ever what its busy hours needed.

/// Gives back to the system what this thread has freed for longer than a second. Takes some microseconds; for a thread
/// to call now and then. Without effect where mimalloc is not the allocator.
pub fn give_back() {
    #[expect(unsafe_code, reason = "mimalloc has no safe interface for it")]
    // SAFETY: takes no pointer and may be called on any thread at any time outside of the allocator.
    unsafe {
        libmimalloc_sys::mi_collect(false);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_may_be_called_at_any_time() {
        let kept = vec![1_u8; 1 << 20];
        super::give_back();
        drop(kept.clone());
        super::give_back();
        assert!(kept.iter().all(|byte| *byte == 1));
    }
}
