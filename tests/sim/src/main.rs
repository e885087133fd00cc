//! `oast-sim`: many seeds, one seed with its trace, or the table of planted bugs.

#![allow(
    clippy::disallowed_macros,
    reason = "this program's output is its purpose"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use oast_daemon::clock::{Clock as _, SystemClock};
use oast_sim::bugs::{self, Bug};
use oast_sim::coverage::Coverage;
use oast_sim::rng::mix;
use oast_sim::{Report, run};

const USAGE: &str = "usage: oast-sim [OPTIONS]

  --seeds N      how many seeds (1000); the first half counts from --from, the other half
                 comes from --commit
  --from SEED    first seed (1)
  --commit HEX   commit that the other half of the seeds is derived from
  --threads N    seeds at a time (2)
  --seed SEED    one seed; with --trace everything that happens in it
  --bugs         each planted bug until it is found, at most --seeds seeds each (200), counted
                 from --from
  --bug NAME     plant this one";

/// Seeds of a full run below which a gap in the coverage is no failure.
const FULL: u64 = 1000;
/// Violations that are printed.
const SHOWN: usize = 10;

struct Options {
    seeds: Option<u64>,
    from: u64,
    commit: Option<String>,
    threads: usize,
    seed: Option<u64>,
    trace: bool,
    bugs: bool,
    bug: Option<Bug>,
}

fn parse(args: &[String]) -> Option<Options> {
    let mut options = Options {
        seeds: None,
        from: 1,
        commit: None,
        threads: 2,
        seed: None,
        trace: false,
        bugs: false,
        bug: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => options.seeds = Some(args.next()?.parse().ok()?),
            "--from" => options.from = args.next()?.parse().ok()?,
            "--commit" => options.commit = Some(args.next()?.clone()),
            "--threads" => options.threads = args.next()?.parse().ok()?,
            "--seed" => options.seed = Some(args.next()?.parse().ok()?),
            "--trace" => options.trace = true,
            "--bugs" => options.bugs = true,
            "--bug" => options.bug = Some(Bug::named(args.next()?)?),
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = parse(&args) else {
        eprintln!("{USAGE}");
        for bug in bugs::ALL {
            eprintln!("                 {}", bug.name());
        }
        return ExitCode::from(2);
    };
    let good = match (options.seed, options.bugs) {
        (Some(seed), _) => one(seed, &options),
        (None, true) => plant_all(&options),
        (None, false) => many(&options),
    };
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn one(seed: u64, options: &Options) -> bool {
    let report = run(seed, options.bug, options.trace);
    for line in &report.lines {
        println!("{line}");
    }
    for violation in &report.violations {
        println!("VIOLATION {violation}");
    }
    println!(
        "seed {seed}: trace {:016x}, {} events, {}.{:03} s simulated, {} commands, {} terms, {} submissions, {} register operations, {} violations",
        report.hash,
        report.events,
        report.simulated / 1_000_000,
        report.simulated / 1_000 % 1_000,
        report.commands,
        report.terms,
        report.submissions,
        report.operations,
        report.violations.len()
    );
    report.violations.is_empty()
}

/// The seeds of a run: half counted, half derived from the commit.
fn seeds(options: &Options, count: u64) -> Vec<u64> {
    let Some(commit) = &options.commit else {
        return (options.from..).take(count as usize).collect();
    };
    let base = commit
        .bytes()
        .fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    let counted = count / 2;
    let derived = (0..count - counted).map(|place| mix(base.wrapping_add(place)) >> 16);
    (options.from..)
        .take(counted as usize)
        .chain(derived)
        .collect()
}

/// Runs seeds side by side until all are done, or `stop` says that it is enough.
fn each(seeds: &[u64], threads: usize, bug: Option<Bug>, take: &(dyn Fn(Report) -> bool + Sync)) {
    let next = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let place = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(seed) = seeds.get(place) else { return };
                    if take(run(*seed, bug, false)) {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// A world's panic is a violation with its seed; the usual lines would only drown it.
fn quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[derive(Default)]
struct Total {
    seeds: u64,
    events: u64,
    simulated: u64,
    shortest: u64,
    commands: u64,
    terms: u64,
    submissions: u64,
    operations: u64,
    coverage: Coverage,
    violations: BTreeMap<u64, Vec<String>>,
}

fn many(options: &Options) -> bool {
    quiet();
    let began = SystemClock.monotonic();
    let count = options.seeds.unwrap_or(FULL);
    let seeds = seeds(options, count);
    let total = Mutex::new(Total {
        shortest: u64::MAX,
        ..Total::default()
    });
    each(&seeds, options.threads, options.bug, &|report| {
        let mut total = total.lock().expect("nobody panics while counting");
        total.seeds += 1;
        total.events += report.events;
        total.simulated += report.simulated;
        total.commands += report.commands;
        total.terms += report.terms as u64;
        total.submissions += report.submissions as u64;
        total.operations += report.operations as u64;
        total.coverage.add(&report.coverage);
        if report.violations.is_empty() {
            total.shortest = total.shortest.min(report.simulated);
        } else {
            let first = &report.violations[0];
            println!("seed {}: VIOLATION {first}", report.seed);
            total.violations.insert(report.seed, report.violations);
        }
        if total.seeds.is_multiple_of(100) {
            let seconds = (SystemClock.monotonic() - began).as_secs_f64();
            println!("{} of {count} seeds in {seconds:.1} s", total.seeds);
        }
        false
    });
    let total = total.into_inner().expect("nobody panics while counting");
    let seconds = (SystemClock.monotonic() - began).as_secs_f64();
    print!("{}", total.coverage.table());
    for (seed, violations) in total.violations.iter().take(SHOWN) {
        println!("seed {seed}:");
        for violation in violations {
            println!("  {violation}");
        }
    }
    let missing = total.coverage.missing();
    for what in &missing {
        println!("never happened: {what}");
    }
    let good = total.violations.is_empty() && (missing.is_empty() || count < FULL);
    println!(
        "{}{} seeds in {seconds:.1} s: {} simulated seconds (at least {} each), {} events ({:.0}/s), {} commands, {} terms, {} submissions, {} register operations, {} seeds with violations",
        if good { "ok " } else { "" },
        total.seeds,
        total.simulated / 1_000_000,
        total.shortest.min(total.simulated) / 1_000_000,
        total.events,
        total.events as f64 / seconds,
        total.commands,
        total.terms,
        total.submissions,
        total.operations,
        total.violations.len()
    );
    good
}

/// Plants one bug after the other; each must be found.
fn plant_all(options: &Options) -> bool {
    quiet();
    let budget = options.seeds.unwrap_or(200);
    // Not from the commit: whether a bug is found must not change with it.
    let seeds: Vec<u64> = (options.from..).take(budget as usize).collect();
    let mut all = true;
    println!(
        "   {:<28} {:>5} {:>8}  found by",
        "planted bug", "seeds", "seconds"
    );
    for bug in bugs::ALL {
        if options.bug.is_some_and(|only| only != bug) {
            continue;
        }
        let began = SystemClock.monotonic();
        let found: Mutex<(u64, Option<Report>)> = Mutex::new((0, None));
        each(&seeds, options.threads, Some(bug), &|report| {
            // What goes wrong without the bug as well was not found because of it.
            let is_found = !report.violations.is_empty()
                && run(report.seed, None, false).violations.is_empty();
            let mut found = found.lock().expect("nobody panics while counting");
            if found.1.is_some() {
                return true;
            }
            found.0 += 1;
            if is_found {
                found.1 = Some(report);
            }
            is_found
        });
        let (tried, found) = found.into_inner().expect("nobody panics while counting");
        let seconds = (SystemClock.monotonic() - began).as_secs_f64();
        match found {
            Some(report) => println!(
                "ok {:<28} {tried:>5} {seconds:>8.1}  seed {}: {}",
                bug.name(),
                report.seed,
                report.violations[0]
            ),
            None => {
                all = false;
                println!("   {:<28} {tried:>5} {seconds:>8.1}  NOT FOUND", bug.name());
            }
        }
    }
    all
}
