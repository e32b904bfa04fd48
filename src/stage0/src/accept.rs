//! Makes RAM private and valid: each page once, in batches.
//!
//! ```text
//! ranges ─► up to 253 pages of 2 MiB or 4 KiB ─► page-state change (host: RMP) ─► PVALIDATE each (processor: valid bit)
//! ```

use crate::abi::{LARGE_PAGE, PAGE, Termination};
use crate::ghcb::{self, MAX_ENTRIES, Page};
use crate::platform::{PageSize, Platform, Pvalidate};
use crate::ram::Range;

/// Accepts all pages of `ranges`, which do not overlap.
pub fn accept<P: Platform>(platform: &mut P, ghcb: u64, ranges: &[Range]) -> Result<(), Termination> {
    let mut batch = [Page {
        gpa: 0,
        size: PageSize::Small,
    }; MAX_ENTRIES];
    let mut used = 0;
    for range in ranges {
        let mut gpa = range.start;
        while gpa < range.end {
            let size = largest(gpa, range.end);
            batch[used] = Page { gpa, size };
            used += 1;
            gpa += size.bytes();
            if used == MAX_ENTRIES {
                accept_batch(platform, ghcb, &batch)?;
                used = 0;
            }
        }
    }
    match &batch[..used] {
        [] => Ok(()),
        rest => accept_batch(platform, ghcb, rest),
    }
}

fn largest(gpa: u64, end: u64) -> PageSize {
    match gpa.is_multiple_of(LARGE_PAGE) && end - gpa >= LARGE_PAGE {
        true => PageSize::Large,
        false => PageSize::Small,
    }
}

fn accept_batch<P: Platform>(platform: &mut P, ghcb: u64, pages: &[Page]) -> Result<(), Termination> {
    ghcb::make_private(platform, ghcb, pages)?;
    pages.iter().try_for_each(|page| validate(platform, *page))
}

fn validate<P: Platform>(platform: &mut P, page: Page) -> Result<(), Termination> {
    match platform.pvalidate(page.gpa, page.size, true) {
        Pvalidate::SizeMismatch if page.size == PageSize::Large => (page.gpa..page.gpa + LARGE_PAGE)
            .step_by(PAGE as usize)
            .try_for_each(|gpa| checked(platform.pvalidate(gpa, PageSize::Small, true))),
        outcome => checked(outcome),
    }
}

fn checked(outcome: Pvalidate) -> Result<(), Termination> {
    match outcome {
        Pvalidate::Changed => Ok(()),
        // SECURITY: each page is validated once, so one that is valid has been validated at another guest address before, or
        // the host brought an old page back: it would hold a stale or doubly mapped content.
        Pvalidate::Unchanged => Err(Termination::AlreadyValid),
        Pvalidate::SizeMismatch | Pvalidate::Failed => Err(Termination::PageNotValidated),
    }
}

#[cfg(test)]
#[path = "accept_test.rs"]
mod tests;
