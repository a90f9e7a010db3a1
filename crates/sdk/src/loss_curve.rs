//! The losses of a training run, read from a task's log, and drawn or written for other programs.
//!
//! The log's step lines have the published form, so the logs of other brokers can be read as well.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One training step.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LossPoint {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Loss per supervised token.
    pub loss: f64,
    /// Learning rate, if the log has it.
    pub learning_rate: Option<f64>,
    /// Epochs so far, if the log has them.
    pub epoch: Option<f64>,
    /// Unix seconds of the line, if it has a time.
    pub at_s: Option<f64>,
}

/// One measurement on the records set aside for validation.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct EvaluationPoint {
    /// Optimiser steps done before it.
    pub step: u64,
    /// Loss per supervised token of these records.
    pub eval_loss: f64,
    /// Epochs so far, if the log has them.
    pub epoch: Option<f64>,
    /// Unix seconds of the line, if it has a time.
    pub at_s: Option<f64>,
}

/// The losses of a run in the order of their steps.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct LossCurve {
    /// Every step that the log has a loss of.
    pub points: Vec<LossPoint>,
    /// Every measurement on validation records; empty where none were set aside.
    pub evaluations: Vec<EvaluationPoint>,
}

impl LossCurve {
    /// Reads a task's log; lines of other kinds are passed over. Steps that a resumed run repeats count once, as they
    /// were last logged.
    #[must_use]
    pub fn from_log(log: &str) -> Self {
        let mut curve = Self::default();
        for line in log.lines().filter_map(parse_line) {
            // A run that goes on from a checkpoint logs the steps behind it again, and measures again.
            match line {
                Line::Step(point) => {
                    let keep = curve.points.partition_point(|kept| kept.step < point.step);
                    curve.points.truncate(keep);
                    curve.forget_evaluations(point.step);
                    curve.points.push(point);
                }
                Line::Evaluation(point) => {
                    curve.forget_evaluations(point.step);
                    curve.evaluations.push(point);
                }
            }
        }
        curve
    }

    /// A table with the columns `step,loss,learning_rate,epoch,unix_time_s,eval_loss`; unknown values are empty.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let cell = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        let mut text = String::from("step,loss,learning_rate,epoch,unix_time_s,eval_loss\n");
        for (step, point, evaluation) in self.rows() {
            let _ = writeln!(
                text,
                "{step},{},{},{},{},{}",
                cell(point.map(|point| point.loss)),
                cell(point.and_then(|point| point.learning_rate)),
                cell(
                    point
                        .and_then(|point| point.epoch)
                        .or(evaluation.and_then(|evaluation| evaluation.epoch))
                ),
                cell(
                    point
                        .and_then(|point| point.at_s)
                        .or(evaluation.and_then(|evaluation| evaluation.at_s))
                ),
                cell(evaluation.map(|evaluation| evaluation.eval_loss)),
            );
        }
        text
    }

    /// Forgets the measurements from `step` on.
    fn forget_evaluations(&mut self, step: u64) {
        let keep = self.evaluations.partition_point(|kept| kept.step < step);
        self.evaluations.truncate(keep);
    }

    /// Every step that has a loss of either kind, in order.
    fn rows(
        &self,
    ) -> impl Iterator<Item = (u64, Option<&LossPoint>, Option<&EvaluationPoint>)> + '_ {
        let mut steps: BTreeMap<u64, (Option<&LossPoint>, Option<&EvaluationPoint>)> =
            BTreeMap::new();
        for point in &self.points {
            steps.entry(point.step).or_default().0 = Some(point);
        }
        for evaluation in &self.evaluations {
            steps.entry(evaluation.step).or_default().1 = Some(evaluation);
        }
        steps
            .into_iter()
            .map(|(step, (point, evaluation))| (step, point, evaluation))
    }

    /// A chart of block characters, `width` by `height` characters without its labels.
    #[must_use]
    pub fn to_text(&self, width: usize, height: usize) -> String {
        const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let (width, height) = (width.clamp(8, 400), height.clamp(2, 100));
        let Some((first, last)) = self.points.first().zip(self.points.last()) else {
            return "No losses are in the log yet.\n".into();
        };
        let columns = self.columns(width);
        let (low, high) = range(self.points.iter().map(|point| point.loss));
        let mut text = String::new();
        for row in (0..height).rev() {
            let label = match row {
                row if row + 1 == height => format!("{high:>9.4} ┤"),
                0 => format!("{low:>9.4} ┤"),
                _ => format!("{:>9} │", ""),
            };
            let _ = write!(text, "{label}");
            for value in &columns {
                // The lowest loss still shows as a thin line.
                let filled = (value - low) / (high - low) * (height * 8 - 1) as f64 + 1.0;
                let eighths = (filled.round() as i64 - (row * 8) as i64).clamp(0, 8);
                text.push(EIGHTHS[eighths as usize]);
            }
            while text.ends_with(' ') {
                text.pop();
            }
            text.push('\n');
        }
        let _ = writeln!(text, "{:>9} └{}", "", "─".repeat(columns.len()));
        let left = format!("step {}", first.step);
        let right = last.step.to_string();
        let gap = columns
            .len()
            .saturating_sub(left.len() + right.len())
            .max(1);
        let _ = writeln!(text, "{:>11}{left}{}{right}", "", " ".repeat(gap));
        let _ = writeln!(
            text,
            "loss {:.4} at step {}, {:.4} at step {}",
            first.loss, first.step, last.loss, last.step
        );
        let lowest = self
            .evaluations
            .iter()
            .min_by(|one, other| one.eval_loss.total_cmp(&other.eval_loss));
        if let Some((lowest, last)) = lowest.zip(self.evaluations.last()) {
            let _ = writeln!(
                text,
                "eval loss {:.4} at step {}, lowest {:.4} at step {}",
                last.eval_loss, last.step, lowest.eval_loss, lowest.step
            );
        }
        text
    }

    /// A drawing of its own: axes, labels, a line of the training loss and, where it was measured, one of the
    /// validation loss.
    #[must_use]
    pub fn to_svg(&self) -> String {
        const WIDTH: f64 = 720.0;
        const HEIGHT: f64 = 360.0;
        const LEFT: f64 = 70.0;
        const RIGHT: f64 = 20.0;
        const TOP: f64 = 20.0;
        const BOTTOM: f64 = 45.0;
        let (plot_width, plot_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<title>Training loss</title>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        let (low, high) = range(
            self.points
                .iter()
                .map(|point| point.loss)
                .chain(self.evaluations.iter().map(|point| point.eval_loss)),
        );
        let mut measured = self.rows().map(|(step, ..)| step);
        let (first, last) = match measured.next() {
            Some(first) => (first, measured.last().unwrap_or(first)),
            None => (0, 1),
        };
        let steps = (last - first).max(1) as f64;
        let x = |step: u64| LEFT + (step - first) as f64 / steps * plot_width;
        let y = |loss: f64| TOP + (high - loss) / (high - low) * plot_height;
        for quarter in 0..=4 {
            let part = f64::from(quarter) / 4.0;
            let (loss, step) = (
                low + (high - low) * part,
                first as f64 + (last - first) as f64 * part,
            );
            let (at_y, at_x) = (y(loss), LEFT + part * plot_width);
            let _ = writeln!(
                text,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at_y:.1}\" y2=\"{at_y:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.4}</text><text x=\"{at_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step:.0}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at_y + 4.0,
                HEIGHT - BOTTOM + 18.0
            );
        }
        let mut line = |color: &str, name: &str, row: f64, points: Vec<(u64, f64)>| {
            let corners: Vec<String> = points
                .iter()
                .map(|(step, loss)| format!("{:.1},{:.1}", x(*step), y(*loss)))
                .collect();
            let _ = writeln!(
                text,
                "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\" points=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\" text-anchor=\"end\">{name}</text>",
                corners.join(" "),
                WIDTH - RIGHT - 6.0,
                TOP + 14.0 * row,
            );
        };
        let points = self.points.iter().map(|point| (point.step, point.loss));
        line("#1f77b4", "training", 1.0, points.collect());
        if !self.evaluations.is_empty() {
            let points = self
                .evaluations
                .iter()
                .map(|point| (point.step, point.eval_loss));
            line("#ff7f0e", "validation", 2.0, points.collect());
        }
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text><text x=\"14\" y=\"{:.1}\" transform=\"rotate(-90 14 {:.1})\" text-anchor=\"middle\">loss</text>\n</svg>",
            LEFT + plot_width / 2.0,
            HEIGHT - 8.0,
            TOP + plot_height / 2.0,
            TOP + plot_height / 2.0
        );
        text
    }

    /// The name of the event file: TensorBoard finds it by its beginning, and orders files by the time in it.
    #[must_use]
    pub fn tensorboard_file_name(&self) -> String {
        let start = self.points.first().and_then(|point| point.at_s);
        format!("events.out.tfevents.{:.0}.zerog", start.unwrap_or(0.0))
    }

    /// An event file of TensorBoard with the scalars `train/loss`, `train/learning_rate` and `eval/loss`.
    #[must_use]
    pub fn to_tensorboard(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let start = self.points.first().and_then(|point| point.at_s);
        let mut header = Vec::new();
        double(&mut header, 1, start.unwrap_or(0.0));
        bytes(&mut header, 3, b"brain.Event:2");
        record(&mut file, &header);
        let mut event = |step: u64, at_s: Option<f64>, summary: &[u8]| {
            let mut event = Vec::new();
            double(&mut event, 1, at_s.unwrap_or(0.0));
            varint(&mut event, 2 << 3);
            varint(&mut event, step);
            bytes(&mut event, 5, summary);
            record(&mut file, &event);
        };
        for (step, point, evaluation) in self.rows() {
            if let Some(point) = point {
                let mut summary = scalar("train/loss", point.loss);
                if let Some(rate) = point.learning_rate {
                    summary.extend(scalar("train/learning_rate", rate));
                }
                event(step, point.at_s, &summary);
            }
            if let Some(evaluation) = evaluation {
                let summary = scalar("eval/loss", evaluation.eval_loss);
                event(step, evaluation.at_s, &summary);
            }
        }
        file
    }

    /// Mean loss of each of at most `width` equal groups of steps.
    fn columns(&self, width: usize) -> Vec<f64> {
        let count = self.points.len();
        let columns = width.min(count);
        (0..columns)
            .map(|column| {
                let group = &self.points[column * count / columns..(column + 1) * count / columns];
                group.iter().map(|point| point.loss).sum::<f64>() / group.len() as f64
            })
            .collect()
    }
}

/// Lowest and highest loss, never equal.
fn range(losses: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = losses.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| {
        (low.min(loss), high.max(loss))
    });
    if !low.is_finite() {
        return (0.0, 1.0);
    }
    if high - low < 1e-9 {
        return (low - 0.5, high + 0.5);
    }
    (low, high)
}

/// What one line of a log tells.
enum Line {
    Step(LossPoint),
    Evaluation(EvaluationPoint),
}

/// Reads `[time] Step: 3, Logs: {'loss': 1.25, …}` and `[time] Step: 3, Logs: {'eval_loss': 1.25, …}`.
fn parse_line(line: &str) -> Option<Line> {
    let (before, rest) = line.split_once("Step: ")?;
    let (step, rest) = rest.split_once(", Logs: {")?;
    let members = rest.split('}').next()?;
    let value = |name: &str| {
        let text = members
            .split(',')
            .filter_map(|member| member.split_once(':'))
            .find(|(key, _)| key.trim().trim_matches(['\'', '"']) == name)?
            .1;
        text.trim()
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite())
    };
    let time = before.trim().trim_start_matches('[').trim_end_matches(']');
    let step = step.trim().parse().ok()?;
    let epoch = value("epoch");
    let at_s = time
        .parse::<jiff::Timestamp>()
        .ok()
        .map(|time| time.as_millisecond() as f64 / 1000.0);
    if let Some(eval_loss) = value("eval_loss") {
        return Some(Line::Evaluation(EvaluationPoint {
            step,
            eval_loss,
            epoch,
            at_s,
        }));
    }
    Some(Line::Step(LossPoint {
        step,
        loss: value("loss")?,
        learning_rate: value("learning_rate"),
        epoch,
        at_s,
    }))
}

/// One `Summary.Value` with a name and a number, as a member of a `Summary`.
fn scalar(tag: &str, number: f64) -> Vec<u8> {
    let mut value = Vec::new();
    bytes(&mut value, 1, tag.as_bytes());
    // simple_value, a 32-bit float.
    varint(&mut value, (2 << 3) | 5);
    value.extend_from_slice(&(number as f32).to_le_bytes());
    let mut member = Vec::new();
    bytes(&mut member, 1, &value);
    member
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    varint(out, (field << 3) | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn double(out: &mut Vec<u8>, field: u64, number: f64) {
    varint(out, (field << 3) | 1);
    out.extend_from_slice(&number.to_le_bytes());
}

/// One record of the file: length, its checksum, content, its checksum.
fn record(file: &mut Vec<u8>, content: &[u8]) {
    let length = (content.len() as u64).to_le_bytes();
    file.extend_from_slice(&length);
    file.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    file.extend_from_slice(content);
    file.extend_from_slice(&masked_crc32c(content).to_le_bytes());
}

/// CRC-32C, rotated and shifted as the file format wants it.
fn masked_crc32c(content: &[u8]) -> u32 {
    crc32c(content).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(content: &[u8]) -> u32 {
    !content.iter().fold(!0, |mut crc: u32, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[2025-03-11T01:20:07.644Z] creating task....
[2025-03-11T01:20:08.000Z] Step: 1, Logs: {'loss': 2.5000, 'grad_norm': 0.7500, 'learning_rate': 2e-4, 'epoch': 0.50}
[2025-03-11T01:20:09.000Z] Step: 2, Logs: {'loss': 2.0000, 'grad_norm': 0.7500, 'learning_rate': 1e-4, 'epoch': 1.00}
[2025-03-11T01:20:09.500Z] Step: 2, Logs: {'eval_loss': 1.9000, 'epoch': 1.00}, the best so far
[2025-03-11T01:20:10.000Z] Step: 3, Logs: {'loss': nan, 'learning_rate': 1e-4}
[2025-03-11T01:21:09.000Z] Step: 2, Logs: {'loss': 1.5000, 'grad_norm': 0.7500, 'learning_rate': 1e-4, 'epoch': 1.00}
[2025-03-11T01:21:10.000Z] Step: 2, Logs: {'eval_loss': 1.7500, 'epoch': 1.00}, the best so far
Step: 4, Logs: {\"loss\": 1.25}
Step: 5, Logs: {'eval_loss': 2.2500, 'eval_accuracy': 0.5000, 'epoch': 2.50}
Step: x, Logs: {'loss': 1}
";

    #[test]
    fn steps_are_read_and_repeated_ones_count_once() {
        let curve = LossCurve::from_log(LOG);
        let short: Vec<_> = curve
            .points
            .iter()
            .map(|point| (point.step, point.loss))
            .collect();
        assert_eq!(short, [(1, 2.5), (2, 1.5), (4, 1.25)]);
        assert_eq!(curve.points[0].learning_rate, Some(2e-4));
        assert_eq!(curve.points[0].at_s, Some(1_741_656_008.0));
        assert_eq!(curve.points[2].at_s, None);
        let measured: Vec<_> = curve
            .evaluations
            .iter()
            .map(|point| (point.step, point.eval_loss, point.epoch))
            .collect();
        assert_eq!(measured, [(2, 1.75, Some(1.0)), (5, 2.25, Some(2.5))]);
    }

    #[test]
    fn tables_have_a_row_for_each_step() {
        let csv = LossCurve::from_log(LOG).to_csv();
        let rows: Vec<_> = csv.lines().collect();
        assert_eq!(
            rows,
            [
                "step,loss,learning_rate,epoch,unix_time_s,eval_loss",
                "1,2.5,0.0002,0.5,1741656008,",
                "2,1.5,0.0001,1,1741656069,1.75",
                "4,1.25,,,,",
                "5,,,2.5,,2.25",
            ]
        );
    }

    #[test]
    fn charts_fall_with_the_loss() {
        let points = (1..=40).map(|step| LossPoint {
            step,
            loss: 4.0 - step as f64 / 10.0,
            learning_rate: None,
            epoch: None,
            at_s: None,
        });
        let curve = LossCurve {
            points: points.collect(),
            evaluations: Vec::new(),
        };
        let chart = curve.to_text(20, 5);
        let rows: Vec<Vec<char>> = chart.lines().map(|row| row.chars().collect()).collect();
        assert_eq!(rows[0][11], '█', "{chart}");
        assert_eq!(
            rows[0].len(),
            11 + 4,
            "only the first fifth reaches the top\n{chart}"
        );
        assert_eq!(rows[4].len(), 11 + 20, "{chart}");
        assert!(
            chart.contains("step 1") && chart.contains("0.0000 at step 40"),
            "{chart}"
        );
        assert!(LossCurve::default().to_text(20, 5).contains("No losses"));
        assert!(!chart.contains("eval loss"), "{chart}");
        let measured = LossCurve::from_log(LOG).to_text(20, 5);
        assert!(
            measured.contains("eval loss 2.2500 at step 5, lowest 1.7500 at step 2"),
            "{measured}"
        );
        // One loss, and losses that are all the same, have a chart as well.
        for count in [1, 3] {
            let flat = LossCurve {
                points: vec![curve.points[0]; count],
                evaluations: Vec::new(),
            };
            assert_eq!(flat.to_text(20, 5).lines().count(), 8);
            assert!(!flat.to_svg().contains("NaN"), "{}", flat.to_svg());
        }
    }

    #[test]
    fn drawings_have_a_point_for_each_step() {
        let svg = LossCurve::from_log(LOG).to_svg();
        let line = svg.split("points=\"").nth(1).unwrap();
        assert_eq!(line.split('"').next().unwrap().split(' ').count(), 3);
        let validation = svg.split("points=\"").nth(2).unwrap();
        assert_eq!(validation.split('"').next().unwrap().split(' ').count(), 2);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn checksums_are_the_published_ones() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The records are taken apart again, by their lengths and checksums.
    #[test]
    fn event_files_hold_every_step() {
        let file = LossCurve::from_log(LOG).to_tensorboard();
        let (mut rest, mut events) = (file.as_slice(), Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let check = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let content = &rest[12..12 + length];
            assert_eq!(check(8), masked_crc32c(&rest[..8]));
            assert_eq!(check(12 + length), masked_crc32c(content));
            events.push(content.to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(
            events.len(),
            6,
            "a header, three steps and two measurements"
        );
        assert!(events[0].ends_with(b"brain.Event:2"));
        let find = |event: &[u8], wanted: &[u8]| {
            event.windows(wanted.len()).any(|window| window == wanted)
        };
        assert!(find(&events[2], b"train/loss"));
        assert!(find(&events[2], &1.5_f32.to_le_bytes()));
        assert!(find(&events[2], b"train/learning_rate"));
        assert!(find(&events[3], b"eval/loss"));
        assert!(find(&events[3], &1.75_f32.to_le_bytes()));
        assert!(!find(&events[4], b"train/learning_rate"));
    }
}
