//! Tables as `kubectl` prints them: no borders, capital headers, at least three spaces between columns.

use std::io::{self, Write};

use comfy_table::{ColumnConstraint, TableStyle, Width, presets};

const GAP: u16 = 3;
const MISSING: &str = "-";

/// Rows under a header. Rows added after it was printed line up as well as they can.
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    widths: Vec<u16>,
}

impl Table {
    pub fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        let header: Vec<String> =
            header.into_iter().map(|name| name.into().to_ascii_uppercase()).collect();
        let widths = vec![0; header.len()];
        Self { header, rows: Vec::new(), widths }
    }

    pub fn add(&mut self, row: Vec<String>) {
        let filled = row.into_iter().map(|cell| match cell.is_empty() {
            true => MISSING.to_owned(),
            // A table is lines: nothing that came from outside may start another one, or steer the terminal.
            false => cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        });
        self.rows.push(filled.collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Prints header and rows.
    pub fn print(&mut self, out: &mut impl Write) -> io::Result<()> {
        let header = std::mem::take(&mut self.header);
        self.print_with(Some(header), out)
    }

    /// Prints rows added since.
    pub fn print_more(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.print_with(None, out)
    }

    fn print_with(&mut self, header: Option<Vec<String>>, out: &mut impl Write) -> io::Result<()> {
        let mut table = plain(presets::NOTHING);
        if let Some(header) = header {
            table.add_row(header);
        }
        table.add_rows(std::mem::take(&mut self.rows));
        if table.is_empty() {
            return Ok(());
        }
        for (known, needed) in self.widths.iter_mut().zip(table.column_max_content_widths()) {
            *known = (*known).max(needed);
        }
        let constraints = self.widths.iter();
        let constraints = constraints
            .map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(width.saturating_add(GAP))));
        table.set_constraints(constraints.collect::<Vec<_>>());
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// An empty table in `style`, as wide as what it holds.
pub fn plain(style: TableStyle) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(style);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn columns_line_up_also_in_rows_that_come_later() {
        let mut table = Table::new(["name", "hosts"]);
        table.add(row(&["orders", "a,b"]));
        table.add(row(&["x", ""]));
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        table.add(row(&["y", "z"]));
        table.print_more(&mut out).unwrap();
        table.print_more(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME     HOSTS\norders   a,b\nx        -\ny        z\n");
    }

    #[test]
    fn a_cell_cannot_forge_a_line_or_steer_the_terminal() {
        let mut table = Table::new(["name"]);
        table.add(row(&["a\nb\u{1b}[31m"]));
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    }
}
