-- take(list, count, budget, largest) -> the callbacks that are next in line, first taken first.
-- Stops after `count` of them, or when their bytes reach `budget` (at least one is returned). One that is
-- over `largest` bytes stands as {size, beginning}, so that a monster crosses the wire only in name.
local function take(list, count, budget, largest)
  local out, bytes, from = {}, 0, 0
  while from < count and bytes < budget do
    local slice = redis.call('LRANGE', list, -math.min(from + 16, count), -(from + 1))
    if #slice == 0 then break end
    for i = #slice, 1, -1 do
      local size = #slice[i]
      if size > largest then
        out[#out + 1] = {size, string.sub(slice[i], 1, 256)}
        bytes = bytes + 256
      else
        if bytes > 0 and bytes + size > budget then return out end
        out[#out + 1] = slice[i]
        bytes = bytes + size
      end
    end
    from = from + #slice
  end
  return out
end
