//! Independent work on all cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

/// Cores that may be used. Asking the system takes longer than the work on a small tree.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Does `work` with every item, on as many threads as there are cores, and returns the results in the order of the
/// items: the outcome does not depend on who did what. The first error in that order is returned.
pub(crate) fn try_map<T, R, E>(items: &[T], work: impl Fn(&T) -> Result<R, E> + Sync) -> Result<Vec<R>, E>
where
    T: Sync,
    R: Send,
    E: Send,
{
    let threads = cores().min(items.len());
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let share = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return done };
            done.push((i, work(item)));
        }
    };
    let mut all = std::thread::scope(|scope| {
        // Where the system has no thread to give, the others do its share.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, share).ok();
        let others: Vec<_> = (1..threads).filter_map(spawn).collect();
        let mut all = share();
        for other in others {
            match other.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_unstable_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        let doubled = try_map(&items, |i| Ok::<_, ()>(i * 2)).unwrap();
        assert!(doubled.iter().zip(&items).all(|(d, i)| *d == i * 2) && doubled.len() == items.len());
        assert_eq!(try_map(&items, |i| if i % 300 == 299 { Err(*i) } else { Ok(()) }), Err(299));
        assert_eq!(try_map(&[] as &[u64], |_| Ok::<_, ()>(())), Ok(Vec::new()));
    }
}
