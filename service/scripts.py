"""The scripts that change the store: each is atomic, of one user, and one round trip.

All keys of a script lie in one partition (`model.contract.store`), so they run on a cluster too.
"""

from __future__ import annotations

SEEN = 1024
"""So many of a user's last events are known again when they are sent again, 8 bytes each."""

FUTURE_MS = 60_000
"""An event may be so far in the future, since clocks differ."""

# What APPEND says of each event.
DUPLICATE, ACCEPTED, ERASED, FULL = 0, 1, -1, -2

# What is known of a layout lives no shorter than any history of it, whoever wrote that.
_TELL = """
local function tell(layouts, layout, fields, ttl)
  redis.call('HSET', layouts, layout, fields)
  if redis.call('PTTL', layouts) < tonumber(ttl) then redis.call('PEXPIRE', layouts, ttl) end
end
"""

# KEYS: history, seen, log, erased, layouts. ARGV: bytes of a record, records to keep, time to live
# (ms), entries that the log may hold, user, ms per unit of ts, the place of the action in a record
# (0: it has none), the layout, its fields, their time to live (ms); then for each event its ts, its
# record ("" when it is no behaviour), its key (8 bytes) and its payload. The history is sorted by
# ts; at one ts what came later stands later, and one of the same item and action is not put in
# again. It is walked and made once for all events, in whatever order they come. One that is older
# than all of a full history is logged alone. What may have been sent before an erasure, by a clock
# that is ahead, is refused after it.
APPEND = (
    f"{_TELL}local KEEP, DUPLICATE, ACCEPTED = {8 * SEEN}, {DUPLICATE}, {ACCEPTED}\n"
    f"local ERASED, FULL, FUTURE = {ERASED}, {FULL}, {FUTURE_MS}\n"
    """
local width, kept, ttl = tonumber(ARGV[1]), ARGV[1] * ARGV[2], ARGV[3]
local history = redis.call('GET', KEYS[1]) or ''
if #history % width ~= 0 then history = '' end
local seen = redis.call('GET', KEYS[2]) or ''
local room = ARGV[4] - redis.call('XLEN', KEYS[3])
local erased = tonumber(redis.call('GET', KEYS[4]) or '-1e300') + FUTURE
local logged = false

local function known(key)
  local at = 1
  while true do
    local found = string.find(seen, key, at, true)
    if not found then return false end
    if found % 8 == 1 then return true end
    at = found + 1
  end
end

local action = tonumber(ARGV[7])
local function name(record)
  local deed = action == 0 and '' or string.sub(record, action + 1, action + 8)
  return string.sub(record, 1, 16) .. deed
end

-- The ts of the record that ends at a place of the history.
local function ts_at(place)
  return struct.unpack('<i8', history, place - width + 1)
end

local oldest = math.huge
for i = 11, #ARGV, 4 do oldest = math.min(oldest, tonumber(ARGV[i])) end

local have, new, place = {}, {}, #history
while place > 0 and ts_at(place) >= oldest do
  have[name(string.sub(history, place - width + 1, place))] = true
  place = place - width
end

local found = {}
for i = 11, #ARGV, 4 do
  local ts, record, key = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  local result = ACCEPTED
  if ts * ARGV[6] <= erased then
    result = ERASED
  elseif known(key) then
    result = DUPLICATE
  elseif room <= 0 then
    result = FULL
  else
    if record ~= '' and not have[name(record)] then
      have[name(record)] = true
      new[#new + 1] = {ts = ts, record = record, came = i}
    end
    redis.call('XADD', KEYS[3], '*', 'k', 'event', 'u', ARGV[5], 'd', ARGV[i + 3])
    seen = string.sub(seen .. key, -KEEP)
    room, logged = room - 1, true
  end
  found[#found + 1] = result
end

table.sort(new, function(one, other)
  if one.ts ~= other.ts then return one.ts < other.ts end
  return one.came < other.came
end)
-- Stretches of the history and between them new records, made from the newest to the oldest.
local parts, stop = {}, #history
for i = #new, 1, -1 do
  place = stop
  while place > 0 and ts_at(place) > new[i].ts do place = place - width end
  parts[2 * i], parts[2 * i + 1] = new[i].record, string.sub(history, place + 1, stop)
  stop = place
end
parts[1] = string.sub(history, 1, stop)
local merged = string.sub(table.concat(parts, '', 1, 2 * #new + 1), -kept)
if merged ~= history then
  tell(KEYS[5], ARGV[8], ARGV[9], ARGV[10])
  redis.call('SET', KEYS[1], merged, 'PX', ttl)
end
if logged then
  redis.call('SET', KEYS[2], seen, 'PX', ttl)
  redis.call('PEXPIRE', KEYS[3], ttl)
end
return found
"""
)

# KEYS: layouts, or withdrawn. ARGV: a field of the hash, its value, time to live (ms). The fields
# that it has then.
TELL = (
    _TELL
    + """
tell(KEYS[1], unpack(ARGV))
return redis.call('HKEYS', KEYS[1])
"""
)

# KEYS: erased, the key, other keys of the same in another form. ARGV: value, time to live (ms),
# whether to replace what is there (1, else 0). Whether it was stored: nothing is of a user who was
# erased, and nothing beside what the user has already.
LOAD = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[3] == '1' then
  redis.call('DEL', unpack(KEYS, 2))
elseif redis.call('EXISTS', unpack(KEYS, 2)) > 0 then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: log, erased. ARGV: user, payload, when it happened (ms), time to live (ms), entries that the
# log may hold. What APPEND says, and as there what may be from before an erasure is refused after.
NOTE = (
    f"local ACCEPTED, ERASED, FULL, FUTURE = {ACCEPTED}, {ERASED}, {FULL}, {FUTURE_MS}\n"
    """
local erased = tonumber(redis.call('GET', KEYS[2]) or '-1e300') + FUTURE
if tonumber(ARGV[3]) <= erased then return ERASED end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[5]) then return FULL end
redis.call('XADD', KEYS[1], '*', 'k', 'score', 'u', ARGV[1], 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return ACCEPTED
"""
)

# KEYS: log, erased, layouts, the user's other keys. ARGV: user, payload, when (ms), time to live of
# the log and of the tombstone (ms), how many layouts the caller knows. How many keys went, and the
# entry of the log that says so; nothing is done where there are other layouts.
ERASE = """
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[6]) then return {} end
local gone = redis.call('DEL', unpack(KEYS, 4))
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[5])
local entry = redis.call('XADD', KEYS[1], '*', 'k', 'erase', 'u', ARGV[1], 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {gone, entry}
"""

# KEYS: log. ARGV: user, first entry to look at, last one, how many. How many entries of the user
# went, and where to go on ("" at the end).
FORGET = """
local gone, entries = 0, redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
for _, entry in ipairs(entries) do
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  if fields.u == ARGV[1] and fields.k ~= 'erase' then
    gone = gone + redis.call('XDEL', KEYS[1], entry[1])
  end
end
if #entries < tonumber(ARGV[4]) then return {gone, ''} end
return {gone, '(' .. entries[#entries][1]}
"""
