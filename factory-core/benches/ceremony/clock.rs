//! Time spent: of the processor by this thread or by all threads, and of the day.

use std::ops::{AddAssign, Sub};
use std::time::{Duration, Instant};

use rustix::time::{clock_gettime, ClockId};

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// CPU time of this thread.
pub fn thread_cpu() -> Duration {
    read(ClockId::ThreadCPUTime)
}

/// What something took: CPU time of the whole process, and wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub cpu: Duration,
    pub wall: Duration,
}

impl Spent {
    /// Does something and says what it took.
    pub fn on<T>(work: impl FnOnce() -> T) -> (T, Self) {
        let (cpu, wall) = (read(ClockId::ProcessCPUTime), Instant::now());
        let value = work();
        (value, Self { cpu: read(ClockId::ProcessCPUTime).sub(cpu), wall: wall.elapsed() })
    }
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.wall += other.wall;
    }
}

/// Milliseconds, to be printed.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// CPU time of one call in microseconds: the lower quartile of `count` calls, since whatever else runs only adds.
pub fn unit_us(count: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut all: Vec<Duration> = (0..count)
        .map(|i| {
            let start = thread_cpu();
            call(i);
            thread_cpu().sub(start)
        })
        .collect();
    all.sort_unstable();
    all.get(count / 4).map_or(0.0, |t| t.as_secs_f64() * 1e6)
}
