//! Driving many rows, and what is printed of them: a table of step by process.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use factory_core::faults::POINTS;

use super::{exit, life, pay, seconds, Outcome, Place, Row, Victim, CLIENTS};
use crate::World;

/// Lives in one world. A new one is started then, since what is over is still shown and looked at.
const LIVES: usize = 12;

/// A row and what came of it.
#[derive(Debug)]
pub struct Judged {
    row: Row,
    result: Result<Outcome>,
    took: Duration,
}

/// The rows that were driven so far.
#[derive(Debug, Default)]
pub struct Matrix {
    judged: Vec<Judged>,
}

impl Matrix {
    /// Writes down what came of a row, and says it.
    fn judge(&mut self, row: Row, took: Duration, result: Result<Outcome>) -> bool {
        match &result {
            Ok(outcome) => println!("{row}: {outcome}, {}", seconds(took)),
            Err(e) => println!("{row}: FAILED after {}: {e:?}", seconds(took)),
        }
        let good = result.is_ok();
        self.judged.push(Judged { row, result, took });
        good
    }

    /// Lives of a factory: each has one of the first rows while it is made and one of the second while it is closed.
    ///
    /// # Errors
    /// If a world does not come up. What goes wrong in a row is in its result, and the others are still driven.
    pub fn lives(&mut self, made: &[Row], closed: &[Row]) -> Result<()> {
        let (mut made, mut closed) = (made.iter().copied(), VecDeque::from(closed.to_vec()));
        let mut world = None;
        for number in 1.. {
            let row = made.next();
            if row.is_none() && closed.is_empty() {
                break;
            }
            let mut here = match world.take() {
                Some(world) => world,
                // The same client fails again and again: nobody is paused for it here.
                None => World::start_with_lsp("crash-lives", CLIENTS, &["--admission-strikes", "0"])?,
            };
            if self.life(&mut here, row, &mut closed) {
                if number % LIVES == 0 {
                    here.finish();
                } else {
                    world = Some(here);
                }
            }
        }
        world.into_iter().for_each(World::finish);
        Ok(())
    }

    /// One life; whether all went well.
    fn life(&mut self, world: &mut World, made: Option<Row>, closed: &mut VecDeque<Row>) -> bool {
        let since = Instant::now();
        let made_of = life::create(world, made.as_ref());
        let (factory, row) = match (made_of, made) {
            (Ok((factory, outcome)), row) => {
                if let Some(row) = row {
                    self.judge(row, since.elapsed(), Ok(outcome));
                }
                // A client that was left out is not there when the factory is closed, nor is a message to a third one.
                let there = |row: &Row| {
                    outcome != Outcome::WithoutIt || (row.place == Place::Lsp && (row.nth as usize) < CLIENTS)
                };
                let at = closed.iter().position(there);
                (factory, at.and_then(|at| closed.remove(at)))
            }
            (Err(e), row) => {
                if let Some(row) = row.or_else(|| closed.pop_front()) {
                    self.judge(row, since.elapsed(), Err(e));
                }
                return false;
            }
        };
        let since = Instant::now();
        let result = life::close(world, &factory, row.as_ref());
        match (row.or(made), result) {
            (Some(_), Ok(outcome)) => row.is_none_or(|row| self.judge(row, since.elapsed(), Ok(outcome))),
            // Without a row of its own it is the making that is to blame.
            (Some(row), Err(e)) => self.judge(row, since.elapsed(), Err(e)),
            (None, result) => result.is_ok(),
        }
    }

    /// Payments in a factory that lives, one row after the other.
    ///
    /// # Errors
    /// As [`Matrix::lives`].
    pub fn payments(&mut self, rows: &[Row]) -> Result<()> {
        let mut there = None;
        for row in rows {
            let (mut world, factory) = match there.take() {
                Some(there) => there,
                None => {
                    let mut world = World::start("crash-pay", CLIENTS)?;
                    let (factory, _) = life::create(&mut world, None)?;
                    (world, factory)
                }
            };
            let since = Instant::now();
            let result = pay::payment(&mut world, &factory, row);
            if self.judge(*row, since.elapsed(), result) {
                there = Some((world, factory));
            }
        }
        if let Some((mut world, factory)) = there {
            life::close(&mut world, &factory, None)?;
            world.finish();
        }
        Ok(())
    }

    /// Exits, each with its rows one after the other.
    ///
    /// # Errors
    /// As [`Matrix::lives`].
    pub fn exits(&mut self, rows: &[Row]) -> Result<()> {
        for place in [Place::Client, Place::Lsp] {
            for bitcoind in [false, true] {
                let of_it = |row: &&Row| row.place == place && (row.victim == Victim::Bitcoind) == bitcoind;
                let rows: Vec<Row> = rows.iter().filter(of_it).copied().collect();
                if !rows.is_empty() {
                    self.exit(place, &rows)?;
                }
            }
        }
        Ok(())
    }

    fn exit(&mut self, place: Place, rows: &[Row]) -> Result<()> {
        let mut world = World::start("crash-exit", CLIENTS)?;
        let (factory, _) = life::create(&mut world, None)?;
        let mut struck = Vec::new();
        let end = exit::drive(&mut world, &factory, place, rows, &mut struck);
        let good = end.is_ok();
        let failure = end.err().map(|e| format!("{e:?}"));
        for (row, took) in &struck {
            // The money is judged at the end, for all of them.
            let result = match &failure {
                None => Ok(Outcome::Resumed),
                Some(why) => Err(anyhow::anyhow!("{why}")),
            };
            self.judge(*row, *took, result);
        }
        for row in rows.iter().filter(|row| !struck.iter().any(|(s, _)| s == *row)) {
            let why = failure.clone().unwrap_or_else(|| "the point was not reached".into());
            self.judge(*row, Duration::ZERO, Err(anyhow::anyhow!("{why}")));
        }
        if good {
            world.finish();
        }
        Ok(())
    }

    /// The table: a line for each step that was driven, a column for who dies there.
    pub fn table(&self) -> String {
        let mut text = String::from("| step | LSP | client | bitcoind |\n|---|---|---|---|\n");
        for point in POINTS.iter().filter(|p| self.judged.iter().any(|j| j.row.point == **p)) {
            let cell = |column: fn(&Row) -> bool| -> String {
                let of_it = self.judged.iter().filter(|j| j.row.point == *point && column(&j.row));
                of_it.map(cell_text).collect::<Vec<_>>().join("; ")
            };
            let lsp = cell(|r| r.place == Place::Lsp && r.victim != Victim::Bitcoind);
            let client = cell(|r| r.place == Place::Client && r.victim != Victim::Bitcoind);
            let bitcoind = cell(|r| r.victim == Victim::Bitcoind);
            let _ = writeln!(text, "| `{point}` | {lsp} | {client} | {bitcoind} |");
        }
        text
    }

    /// Fails if a row did, with all that did.
    ///
    /// # Errors
    /// The rows that failed, and why.
    pub fn check(&self) -> Result<()> {
        let failed: Vec<String> = self
            .judged
            .iter()
            .filter_map(|j| j.result.as_ref().err().map(|e| format!("{}: {e:?}", j.row)))
            .collect();
        match failed.len() {
            0 => Ok(()),
            n => bail!("{n} of {} crashes did harm:\n{}", self.judged.len(), failed.join("\n")),
        }
    }
}

fn cell_text(judged: &Judged) -> String {
    let how = match (judged.row.victim, judged.row.nth) {
        (Victim::Twice, _) => "twice: ".to_owned(),
        (_, 1) => String::new(),
        (_, nth) => format!("time {nth}: "),
    };
    let what = judged.result.as_ref().map_or_else(|_| "**FAILED**".to_owned(), ToString::to_string);
    format!("{how}{what} {}", seconds(judged.took))
}
