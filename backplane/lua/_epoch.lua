-- A log's epoch ends when a server goes on with it that may lack what was written last: one that was restarted,
-- promoted in another's place, or given the slot. Its entries stay and keep their seqs under the next epoch;
-- only positions behind what the server has got are of no log any more. A record's field p has the epochs that
-- ended, newest first: 'epoch:last seq epoch:last seq'.

-- standing(record, epoch) -> the highest seq of positions of `epoch` that still stand; -1 if none does.
-- `record` is HMGET's reply for e, h, p.
local function standing(record, epoch)
  if not record[1] then return -1 end
  local least = tonumber(record[2])
  if record[1] == epoch then return least end
  for ended, last in string.gmatch(record[3] or '', '(%w+):(%d+)') do
    least = math.min(least, tonumber(last))
    if ended == epoch then return least end
  end
  return -1
end

-- earlier(record) -> field p of the epoch that begins now.
local function earlier(record)
  local ended, kept = {record[1] .. ':' .. (record[2] or 0)}, record[3] or ''
  for one in string.gmatch(kept, '%S+') do
    if #ended < 8 then ended[#ended + 1] = one end
  end
  return table.concat(ended, ' ')
end
