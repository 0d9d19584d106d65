//! Tables: one row for each thing, an upper-case header, two spaces between, no borders.

use crate::output::Tone;

/// What stands in one place of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// A text with a meaning.
    #[must_use]
    pub fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Some(tone) }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: None }
    }
}

/// How a table is shown.
#[derive(Clone, Copy)]
pub struct Style<'a> {
    /// Columns that there is room for; `None` cuts nothing, as a program that reads it needs.
    pub width: Option<usize>,
    /// Whether the header is shown.
    pub header: bool,
    /// Stands for what was cut off.
    pub ellipsis: &'a str,
    /// Puts a tone around a text.
    pub paint: &'a dyn Fn(Tone, &str) -> String,
}

/// No column is made narrower than this.
const NARROWEST: usize = 8;

/// Renders rows under a header; the last column is not padded. What is wider than there is room for is cut, the widest
/// columns first.
#[must_use]
pub fn render(header: &[&str], rows: &[Vec<Cell>], style: &Style<'_>) -> String {
    let header: Vec<Cell> = header.iter().map(|title| (*title).into()).collect();
    let mut widths: Vec<usize> = header.iter().map(Cell::width).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    if let Some(room) = style.width {
        fit(&mut widths, room.saturating_sub(2 * header.len().saturating_sub(1)));
    }
    let shown = style.header.then_some(&header).into_iter().chain(rows);
    shown.map(|cells| line(cells, &widths, style)).collect()
}

/// The same whole, with its header and without colour.
#[must_use]
pub fn plain(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cell>> =
        rows.iter().map(|row| row.iter().map(|text| text.as_str().into()).collect()).collect();
    let paint = |_: Tone, text: &str| text.to_owned();
    render(header, &rows, &Style { width: None, header: true, ellipsis: "", paint: &paint })
}

/// Takes from the widest column, one at a time, until all fit.
fn fit(widths: &mut [usize], room: usize) {
    while widths.iter().sum::<usize>() > room {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => return,
        }
    }
}

fn line(cells: &[Cell], widths: &[usize], style: &Style<'_>) -> String {
    let mut line = String::new();
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let text = cut(&cell.text, *width, style.ellipsis);
        let used = text.chars().count();
        match cell.tone {
            Some(tone) => line.push_str(&(style.paint)(tone, &text)),
            None => line.push_str(&text),
        }
        if index + 1 < cells.len() {
            line.push_str(&" ".repeat(width.saturating_sub(used) + 2));
        }
    }
    line.trim_end().to_owned() + "\n"
}

fn cut(text: &str, width: usize, ellipsis: &str) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(ellipsis.chars().count());
    text.chars().take(kept).collect::<String>() + ellipsis
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rows: &[Vec<Cell>], width: Option<usize>, header: bool) -> String {
        let paint = |_: Tone, text: &str| format!("\x1b[1m{text}\x1b[0m");
        render(&["NAME", "WHAT"], rows, &Style { width, header, ellipsis: "…", paint: &paint })
    }

    #[test]
    fn columns_line_up_whatever_their_colour() {
        let rows = [vec![Cell::toned(Tone::Bold, "a"), "long cell".into()], vec!["longer".into(), "".into()]];
        assert_eq!(shown(&rows, None, true), "NAME    WHAT\n\x1b[1ma\x1b[0m       long cell\nlonger\n");
        assert_eq!(shown(&rows, None, false), "\x1b[1ma\x1b[0m       long cell\nlonger\n");
    }

    #[test]
    fn what_is_too_wide_is_cut_where_it_is_widest() {
        let rows = [vec!["short".into(), Cell::from("x".repeat(100))]];
        let text = shown(&rows, Some(40), true);
        assert_eq!(text.lines().map(|line| line.chars().count()).max(), Some(40));
        assert!(text.ends_with("x…\n") && text.contains("short  xx"), "{text}");
        // A program reads all of it.
        assert!(shown(&rows, None, true).contains(&"x".repeat(100)));
        // There is a limit to what makes sense.
        assert!(shown(&rows, Some(3), true).contains("short"), "{}", shown(&rows, Some(3), true));
    }
}
