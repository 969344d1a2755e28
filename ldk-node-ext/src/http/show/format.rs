//! Small pieces: numbers, times, tables, bars.

use std::fmt::Write;

use crate::api::Deadline;

/// Digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An amount in satoshi.
pub fn sat(amount: u64) -> String {
    format!("{} sat", grouped(amount))
}

/// An amount in millisatoshi, shown as satoshi with three decimals where they are not zero.
pub fn msat(amount: u64) -> String {
    match amount % 1000 {
        0 => sat(amount / 1000),
        rest => format!("{}.{rest:03} sat", grouped(amount / 1000)),
    }
}

/// How deep a transaction is.
pub fn confirmations(n: u32) -> String {
    match n {
        0 => "unconfirmed".to_owned(),
        1 => "1 confirmation".to_owned(),
        n => format!("{n} confirmations"),
    }
}

/// The beginning of a long identifier.
pub fn short(id: &str) -> String {
    match id.char_indices().nth(16) {
        Some((end, _)) => format!("{}…", id.get(..end).unwrap_or(id)),
        None => id.to_owned(),
    }
}

/// A span of time in its two largest units.
pub fn time_left(seconds: i64) -> String {
    let n = seconds.unsigned_abs();
    let (days, hours, minutes) = (n / 86_400, n % 86_400 / 3600, n % 3600 / 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{n} s"),
        (0, 0, m) => format!("{m} min"),
        (0, h, 0) => format!("{h} h"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, 0, _) => format!("{d} d"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// A deadline in blocks and as time.
pub fn deadline(deadline: &Deadline) -> String {
    let Deadline { what, height, blocks, seconds } = deadline;
    let unit = if blocks.unsigned_abs() == 1 { "block" } else { "blocks" };
    match blocks {
        0 => format!("{what}: now (height {height})"),
        b if *b < 0 => {
            format!(
                "{what}: OVERDUE by {} {unit}, {} (height {height})",
                b.unsigned_abs(),
                time_left(*seconds)
            )
        }
        b => format!("{what}: in {b} {unit}, about {} (height {height})", time_left(*seconds)),
    }
}

/// Seconds since the Unix epoch as UTC date and time.
pub fn utc(unix: u64) -> String {
    // Days to a date as in Howard Hinnant's "chrono-compatible low-level date algorithms".
    let (days, rest) = (unix / 86_400, unix % 86_400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// A bar of `width` characters.
pub fn bar(done: usize, total: usize, width: usize) -> String {
    let full = match total {
        0 => 0,
        _ => done.min(total).saturating_mul(width) / total,
    };
    format!("[{}{}]", "#".repeat(full), "·".repeat(width.saturating_sub(full)))
}

/// To which side a column leans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a head; just `nothing` if there are no rows.
pub fn table(head: &[(&str, Align)], rows: &[Vec<String>], nothing: &str) -> String {
    if rows.is_empty() {
        return nothing.to_owned();
    }
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(i, (title, _))| {
            let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(title.chars().count())
        })
        .collect();
    let mut out = String::new();
    let titles: Vec<String> = head.iter().map(|(title, _)| title.to_uppercase()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for ((cell, (_, align)), width) in row.iter().zip(head).zip(&widths) {
            // Writing to a String cannot fail.
            let _ = match align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_groups_and_units() {
        assert_eq!(sat(0), "0 sat");
        assert_eq!(sat(999), "999 sat");
        assert_eq!(sat(1_234_567), "1,234,567 sat");
        assert_eq!(msat(1_234_000), "1,234 sat");
        assert_eq!(msat(1_234_056), "1,234.056 sat");
        assert_eq!(msat(7), "0.007 sat");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(time_left(600), "10 min");
        assert_eq!(time_left(4300 * 600), "29 d 20 h");
        assert_eq!(time_left(-5400), "1 h 30 min");
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_826_153), "2000-02-29 12:09:13Z");
        assert_eq!(utc(1_767_225_599), "2025-12-31 23:59:59Z");
    }

    #[test]
    fn overdue_deadlines_say_so() {
        let mut d = Deadline { what: "leave".into(), height: 90, blocks: 1, seconds: 600 };
        assert_eq!(deadline(&d), "leave: in 1 block, about 10 min (height 90)");
        (d.blocks, d.seconds) = (-3, -1800);
        assert_eq!(deadline(&d), "leave: OVERDUE by 3 blocks, 30 min (height 90)");
    }

    #[test]
    fn tables_line_up() {
        let head = [("id", Align::Left), ("sat", Align::Right)];
        let rows = vec![vec!["abc".to_owned(), "5".to_owned()], vec!["d".to_owned(), "1,000".to_owned()]];
        assert_eq!(table(&head, &rows, "none"), "ID     SAT\nabc      5\nd    1,000\n");
        assert_eq!(table(&head, &[], "none"), "none");
    }

    #[test]
    fn bars_fill() {
        assert_eq!(bar(0, 4, 8), "[········]");
        assert_eq!(bar(1, 4, 8), "[##······]");
        assert_eq!(bar(9, 4, 8), "[########]");
        assert_eq!(bar(1, 0, 2), "[··]");
    }
}
