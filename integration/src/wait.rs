//! Waiting for a condition, with a deadline and an account of what was last seen.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The most that any wait may last, seconds, in the environment: a check of a check waits for what will not come.
pub(crate) const LONGEST: &str = "SCENARIO_PATIENCE";

/// What a look at the condition found.
#[derive(Debug)]
pub enum Seen<T> {
    /// It holds; the value goes to the caller.
    Done(T),
    /// It does not hold yet; the text says what was seen instead.
    NotYet(String),
}

impl<T> Seen<T> {
    /// Not yet, with anything that can be printed.
    pub fn not_yet(what: impl Display) -> Self {
        Self::NotYet(what.to_string())
    }
}

/// A limit, or less if the environment says so.
pub(crate) fn at_most(limit: Duration) -> Duration {
    let longest = std::env::var(LONGEST).ok().and_then(|secs| secs.parse().ok()).map(Duration::from_secs);
    longest.map_or(limit, |longest| limit.min(longest))
}

/// Polls `look` until it says [`Seen::Done`] or `limit` has passed.
///
/// # Errors
/// An error of `look` counts as "not yet", since a process may just be starting: only at the deadline does it become
/// the cause of the failure. The text names what was waited for, for how long, and what was last seen.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let (start, limit) = (Instant::now(), at_most(limit));
    loop {
        let late = start.elapsed() >= limit;
        match look() {
            Ok(Seen::Done(value)) => return Ok(value),
            Ok(Seen::NotYet(seen)) if late => {
                bail!("waited {} s for {what}; last seen: {seen}", limit.as_secs())
            }
            Err(error) if late => {
                return Err(error).with_context(|| format!("waited {} s for {what}", limit.as_secs()))
            }
            Ok(Seen::NotYet(_)) | Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Polls until `test` is true of what `look` returns, which is printed with `{:?}` at the deadline.
///
/// # Errors
/// As [`until`].
pub fn until_value<T: std::fmt::Debug>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T>,
    test: impl Fn(&T) -> bool,
) -> Result<T> {
    until(what, limit, || {
        let value = look()?;
        Ok(if test(&value) { Seen::Done(value) } else { Seen::NotYet(format!("{value:?}")) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_last_seen() {
        let mut looks = 0;
        let error = until::<()>("the moon", Duration::from_millis(250), || {
            looks += 1;
            Ok(Seen::not_yet(format!("look {looks}")))
        })
        .unwrap_err();
        assert!(looks > 1);
        assert!(error.to_string().ends_with(&format!("for the moon; last seen: look {looks}")), "{error}");
    }

    #[test]
    fn an_error_is_not_the_end_until_the_deadline() {
        let mut looks = 0;
        let value = until("a value", Duration::from_secs(5), || {
            looks += 1;
            if looks < 3 {
                bail!("not listening")
            }
            Ok(Seen::Done(looks))
        });
        assert_eq!(value.unwrap(), 3);
    }
}
