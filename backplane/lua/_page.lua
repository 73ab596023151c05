-- page(log, oldest, after, count, budget) -> entries that follow seq `after`, oldest first.
-- An entry's seq is not stored: the last one's is the head, and the list has no holes.
local function page(log, oldest, after, count, budget)
  local out, bytes, index = {}, 0, math.max(after + 1 - oldest, 0)
  while #out < count and bytes < budget do
    local slice = redis.call('LRANGE', log, index, index + math.min(32, count - #out) - 1)
    if #slice == 0 then break end
    for i = 1, #slice do
      if #out > 0 and bytes + #slice[i] > budget then return out end
      out[#out + 1] = slice[i]
      bytes = bytes + #slice[i]
    end
    index = index + #slice
  end
  return out
end
