//! What changed between two texts, as unified diff.

use std::{
    fmt::{self, Write as _},
    ops::Range,
};

/// Unchanged lines shown around a change.
const CONTEXT: usize = 3;
/// Cells of the table that finds the shortest diff. Texts that differ in more places than fit are shown as
/// one change from first to last difference: correct, only longer.
const MAX_CELLS: usize = 16 * 1024 * 1024;

/// How `old` became `new`, under the headers `old_name` and `new_name`; empty when they are equal.
pub fn unified(old_name: &str, new_name: &str, old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let edits = edits(&old, &new);
    let mut text = String::new();
    for hunk in hunks(&edits) {
        if text.is_empty() {
            text = format!("--- {old_name}\n+++ {new_name}\n");
        }
        // Writing to a String cannot fail.
        let _ = write_hunk(&edits, hunk, &old, &new, &mut text);
    }
    text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Keep,
    Remove,
    Add,
}

fn edits(old: &[&str], new: &[&str]) -> Vec<Edit> {
    let head = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (rest_old, rest_new) = (&old[head..], &new[head..]);
    let tail = rest_old
        .iter()
        .rev()
        .zip(rest_new.iter().rev())
        .take_while(|(old, new)| old == new)
        .count();
    let middle_old = &rest_old[..rest_old.len() - tail];
    let middle_new = &rest_new[..rest_new.len() - tail];
    let mut edits = vec![Edit::Keep; head];
    edits.extend(shortest(middle_old, middle_new));
    edits.extend(vec![Edit::Keep; tail]);
    edits
}

/// By the longest common subsequence, from a table of its length for every pair of suffixes.
fn shortest(old: &[&str], new: &[&str]) -> Vec<Edit> {
    let width = new.len() + 1;
    if (old.len() + 1).saturating_mul(width) > MAX_CELLS {
        let removed = vec![Edit::Remove; old.len()];
        return removed.into_iter().chain(vec![Edit::Add; new.len()]).collect();
    }
    let mut common = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = match old[i] == new[j] {
                true => common[(i + 1) * width + j + 1] + 1,
                false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut edits = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            edits.push(Edit::Keep);
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]
        {
            edits.push(Edit::Remove);
            i += 1;
        } else {
            edits.push(Edit::Add);
            j += 1;
        }
    }
    edits
}

/// Ranges of edits to show: each change with its context, neighbours joined.
fn hunks(edits: &[Edit]) -> Vec<Range<usize>> {
    let mut hunks: Vec<Range<usize>> = Vec::new();
    for (at, _) in edits.iter().enumerate().filter(|(_, edit)| **edit != Edit::Keep) {
        let (start, end) = (at.saturating_sub(CONTEXT), (at + CONTEXT + 1).min(edits.len()));
        match hunks.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => hunks.push(start..end),
        }
    }
    hunks
}

fn write_hunk(
    edits: &[Edit],
    hunk: Range<usize>,
    old: &[&str],
    new: &[&str],
    text: &mut String,
) -> fmt::Result {
    let count = |range: &[Edit], but: Edit| range.iter().filter(|edit| **edit != but).count();
    let before = &edits[..hunk.start];
    let (mut i, mut j) = (count(before, Edit::Add), count(before, Edit::Remove));
    let shown = &edits[hunk];
    let (removed, added) = (count(shown, Edit::Add), count(shown, Edit::Remove));
    // An empty side is named by the line before it.
    let start = |index: usize, lines: usize| if lines == 0 { index } else { index + 1 };
    writeln!(text, "@@ -{},{removed} +{},{added} @@", start(i, removed), start(j, added))?;
    for edit in shown {
        match edit {
            Edit::Keep => {
                writeln!(text, " {}", old[i])?;
                (i, j) = (i + 1, j + 1);
            }
            Edit::Remove => {
                writeln!(text, "-{}", old[i])?;
                i += 1;
            }
            Edit::Add => {
                writeln!(text, "+{}", new[j])?;
                j += 1;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_texts_have_no_diff() {
        assert_eq!(unified("a", "b", "x\ny\n", "x\ny\n"), "");
    }

    #[test]
    fn a_change_is_shown_with_its_surroundings() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = old.replace("5\n", "five\n");
        let text = "--- a\n+++ b\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n";
        assert_eq!(unified("a", "b", old, &new), text);
    }

    #[test]
    fn what_is_new_starts_from_nothing() {
        assert_eq!(unified("a", "b", "", "x\ny\n"), "--- a\n+++ b\n@@ -0,0 +1,2 @@\n+x\n+y\n");
        assert_eq!(unified("a", "b", "x\n", ""), "--- a\n+++ b\n@@ -1,1 +0,0 @@\n-x\n");
    }

    #[test]
    fn distant_changes_are_separate_hunks() {
        let old: String = (0..30).map(|n| format!("{n}\n")).collect();
        let new = old.replace("\n5\n", "\nfive\n").replace("\n25\n", "\n");
        let text = unified("a", "b", &old, &new);
        assert_eq!(text.matches("@@ -").count(), 2, "{text}");
        assert!(text.contains("@@ -23,7 +23,6 @@"), "{text}");
    }

    proptest! {
        #[test]
        fn following_the_edits_turns_old_into_new(
            old in prop::collection::vec("[a-c]", 0..12), new in prop::collection::vec("[a-c]", 0..12),
        ) {
            let (old, new): (Vec<&str>, Vec<&str>) =
                (old.iter().map(String::as_str).collect(), new.iter().map(String::as_str).collect());
            let (mut i, mut j) = (0, 0);
            for edit in edits(&old, &new) {
                match edit {
                    Edit::Keep => {
                        prop_assert_eq!(old[i], new[j]);
                        (i, j) = (i + 1, j + 1);
                    }
                    Edit::Remove => i += 1,
                    Edit::Add => j += 1,
                }
            }
            prop_assert_eq!((i, j), (old.len(), new.len()));
        }
    }
}
