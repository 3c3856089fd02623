"""When cron expressions fire, worked out a second time: no code and no library in common with the program.

Reads lines `expression TAB zone TAB instant instant …` (seconds since 1970, rising) from the file that is its only
argument, and prints for each line the first firing after each instant, or `-` when there is none before the year 2500.

The calendar is a table of all days that match, made day by day; the zone is Python's `zoneinfo` with its own data. The
rules: every local time that matches fires once; one that the zone skips fires at the first instant after the gap, one that
comes twice fires at its first occurrence.
"""

import bisect
import calendar
import datetime
import functools
import os
import re
import sys

os.environ["PYTHONTZPATH"] = ""  # the pinned data, not the machine's

import zoneinfo  # noqa: E402

UTC = datetime.timezone.utc
EPOCH = datetime.datetime(1970, 1, 1)
MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
DAYS = "SUN MON TUE WED THU FRI SAT".split()
NICKNAMES = {
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
    "@MONTHLY": "0 0 1 * *",
    "@WEEKLY": "0 0 * * 0",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@HOURLY": "0 * * * *",
}
CHUNK = 8  # years of days that are worked out at a time


def numbers(text, low, high, names):
    """The numbers that a list of values, ranges and steps stands for."""

    def number(word):
        return names[word] if word in names else int(word)

    found = set()
    for item in text.split(","):
        match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", item)
        first, last, step = match.groups()
        if first == "*":
            begin, end = low, high
        else:
            begin = number(first)
            # A value with a step goes on to the end, and is itself one of them: 7/2 is Sunday.
            end = number(last) if last else (max(high, begin) if step else begin)
            if names is WEEK and last and end == 0 and begin > 0:
                end = 7
        found.update(range(begin, end + 1, int(step or 1)))
    return found


WEEK = {name: index for index, name in enumerate(DAYS)}
YEAR = {name: index + 1 for index, name in enumerate(MONTHS)}


class Expression:
    def __init__(self, text):
        text = text.strip().upper()
        fields = NICKNAMES.get(text, text).split()
        if len(fields) == 5:
            fields.insert(0, "0")
        second, minute, hour, self.day, month, self.weekday = fields
        self.hours = sorted(numbers(hour, 0, 23, {}))
        self.minutes = sorted(numbers(minute, 0, 59, {}))
        self.seconds = sorted(numbers(second, 0, 59, {}))
        self.months = numbers(month, 1, 12, YEAR)
        self.any_day, self.any_weekday = self.day in "*?", self.weekday in "*?"
        plain = [item for item in self.day.split(",") if item != "L"]
        self.days = numbers(",".join(plain), 1, 31, {}) if plain and not self.any_day else set()
        self.last_day = "L" in self.day.split(",")
        self.weekdays, self.nth, self.last = set(), set(), set()
        if not self.any_weekday:
            for item in self.weekday.split(","):
                self.read_weekday(item)
        self.dates = {}

    def read_weekday(self, item):
        if "#" in item:
            day, nth = item.split("#")
            self.nth.add((WEEK.get(day, day) if day in WEEK else int(day) % 7, int(nth)))
        elif item.endswith("L"):
            day = item[:-1]
            self.last.add(WEEK[day] if day in WEEK else int(day) % 7)
        else:
            self.weekdays.update(day % 7 for day in numbers(item, 0, 6, WEEK))

    def matches(self, year, month, day, weekday, length):
        by_day = day in self.days or (self.last_day and day == length)
        by_weekday = (
            weekday in self.weekdays
            or (weekday, (day + 6) // 7) in self.nth
            or (weekday in self.last and day + 7 > length)
        )
        if self.any_day or self.any_weekday:
            return (self.any_day or by_day) and (self.any_weekday or by_weekday)
        return by_day or by_weekday

    def dates_of(self, chunk):
        """The ordinals of the days that match in years chunk*8 to chunk*8+7."""
        if chunk not in self.dates:
            found = []
            for year in range(chunk * CHUNK, chunk * CHUNK + CHUNK):
                for month in sorted(self.months):
                    first, length = calendar.monthrange(year, month)
                    base = datetime.date(year, month, 1).toordinal()
                    for day in range(1, length + 1):
                        weekday = (first + day) % 7  # Monday is 0 for `calendar`, Sunday here
                        if self.matches(year, month, day, weekday, length):
                            found.append(base + day - 1)
            self.dates[chunk] = found
        return self.dates[chunk]

    def date_from(self, ordinal):
        """The first day that matches from `ordinal` on."""
        chunk = datetime.date.fromordinal(ordinal).year // CHUNK
        while chunk * CHUNK < 2500:
            dates = self.dates_of(chunk)
            at = bisect.bisect_left(dates, ordinal)
            if at < len(dates):
                return dates[at] if datetime.date.fromordinal(dates[at]).year <= 2500 else None
            chunk += 1
        return None

    def time_after(self, time):
        """The first time of day after `time`, (-1, 0, 0) being before all."""
        hour, minute, second = time
        if hour in self.hours:
            if minute in self.minutes:
                at = bisect.bisect_right(self.seconds, second)
                if at < len(self.seconds):
                    return hour, minute, self.seconds[at]
            at = bisect.bisect_right(self.minutes, minute)
            if at < len(self.minutes):
                return hour, self.minutes[at], self.seconds[0]
        at = bisect.bisect_right(self.hours, hour)
        if at < len(self.hours):
            return self.hours[at], self.minutes[0], self.seconds[0]
        return None

    def local_after(self, local):
        """The first local time after `local` that matches."""
        ordinal = local.toordinal()
        if self.date_from(ordinal) == ordinal:
            time = self.time_after((local.hour, local.minute, local.second))
            if time:
                return datetime.datetime.combine(local.date(), datetime.time(*time))
        date = self.date_from(ordinal + 1)
        if date is None:
            return None
        return datetime.datetime.combine(
            datetime.date.fromordinal(date), datetime.time(self.hours[0], self.minutes[0], self.seconds[0])
        )


def seconds(moment):
    return (moment - EPOCH) // datetime.timedelta(seconds=1)


@functools.lru_cache(maxsize=None)
def zone_of(name):
    return zoneinfo.ZoneInfo(name)


def local_of(instant, zone):
    moment = EPOCH.replace(tzinfo=UTC) + datetime.timedelta(seconds=instant)
    return moment.astimezone(zone).replace(tzinfo=None)


@functools.lru_cache(maxsize=100_000)
def end_of_gap(local, zone):
    """The offset jumps somewhere between the two readings of a local time that does not exist."""
    low = seconds(local) - int(local.replace(tzinfo=zone, fold=1).utcoffset().total_seconds())
    high = seconds(local) - int(local.replace(tzinfo=zone, fold=0).utcoffset().total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if local_of(middle, zone) > local:
            high = middle
        else:
            low = middle
    return high


def instant_of(local, zone):
    instant = seconds(local) - int(local.replace(tzinfo=zone, fold=0).utcoffset().total_seconds())
    if local_of(instant, zone) == local:
        return instant
    return end_of_gap(local, zone)


def after(expression, zone, instant):
    local = local_of(instant, zone)
    while True:
        local = expression.local_after(local)
        if local is None:
            return None
        found = instant_of(local, zone)
        if found > instant:
            return found


def main():
    for line in open(sys.argv[1], encoding="utf-8"):
        text, zone, instants = line.rstrip("\n").split("\t")
        expression, zone = Expression(text), zone_of(zone)
        answers = (after(expression, zone, int(instant)) for instant in instants.split())
        print(" ".join("-" if answer is None else str(answer) for answer in answers))


if __name__ == "__main__":
    main()
