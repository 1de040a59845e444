# tq_faiss_symbols(<version> <variable>): FAISS's functions that reach us through index/wrap.cpp or
# the Python plugin, as NAME=mangled. A wrong name is harmless to FAISS but leaves it unwrapped:
# tests/index/plain_faiss_test.cpp and tests/python/test_faiss.py fail.
function(tq_faiss_symbols version variable)
  set(factory _ZN5faiss13index_factoryEiPKcNS_10MetricTypeE)
  set(write _ZN5faiss11write_indexEPKNS_5IndexE)
  set(read _ZN5faiss10read_indexE)
  set(read_up _ZN5faiss13read_index_upE)
  set(factory_flags "")
  set(write_flags "")
  if(version VERSION_GREATER_EQUAL 1.12)
    set(factory_flags b)  # own_invlists
  endif()
  if(version VERSION_GREATER_EQUAL 1.9)
    set(write_flags i)  # io_flags
  endif()
  set(symbols
    INDEX_FACTORY=${factory}${factory_flags}
    WRITE_PATH=${write}PKc${write_flags}
    WRITE_FILE=${write}P8_IO_FILE${write_flags}
    WRITE_WRITER=${write}PNS_8IOWriterE${write_flags}
    READ_PATH=${read}PKci
    READ_FILE=${read}P8_IO_FILEi
    READ_READER=${read}PNS_8IOReaderEi
    CLONE_INDEX=_ZN5faiss11clone_indexEPKNS_5IndexE)
  if(version VERSION_GREATER_EQUAL 1.14)
    list(APPEND symbols
      READ_UP_PATH=${read_up}PKci
      READ_UP_FILE=${read_up}P8_IO_FILEi
      READ_UP_READER=${read_up}PNS_8IOReaderEi)
  endif()
  set(${variable} ${symbols} PARENT_SCOPE)
endfunction()
