// A backend in another language: nlattn validate exec:./attention
// It is called with the folder of one case, reads q.npy, k.npy and v.npy, and writes out.npy.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

struct Array {
  std::vector<size_t> shape;
  std::vector<float> data;
  size_t size() const { size_t n = 1; for (size_t s : shape) n *= s; return n; }
};

[[noreturn]] void end(int code, const char* why) { puts(why); fflush(stdout); std::_Exit(code); }

Array read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  unsigned char start[10];
  if (!file.read(reinterpret_cast<char*>(start), 10)) end(1, "a file is missing");
  std::string header(start[8] + 256 * start[9], ' ');
  file.read(&header[0], header.size());
  if (header.find("'<f4'") == std::string::npos || header.find("False") == std::string::npos)
    end(65, "expected float32 in C order");
  Array a;
  for (char* p = &header[header.find('(') + 1]; *p && *p != ')';)
    if (*p >= '0' && *p <= '9') a.shape.push_back(strtoull(p, &p, 10)); else ++p;
  a.data.resize(a.size());
  file.read(reinterpret_cast<char*>(a.data.data()), 4 * a.size());
  for (float x : a.data) if (!std::isfinite(x)) end(65, "expected finite values");
  return a;
}

void write(const std::string& path, const Array& a) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (size_t s : a.shape) header += std::to_string(s) + ",";
  header += "), }";
  header += std::string(117 - header.size(), ' ') + "\n";
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00\x76\x00", 10).write(header.data(), 118);
  file.write(reinterpret_cast<const char*>(a.data.data()), 4 * a.size());
}

// out[i] = sum_j softmax_j(scale q[i].k[j]) v[j], for one head
void attend(const float* q, const float* k, const float* v, float* out, size_t n, size_t m,
            size_t d, size_t e, float scale) {
  std::vector<float> s(m);
  for (size_t i = 0; i < n; ++i, q += d, out += e) {
    float top = -INFINITY, sum = 0;
    for (size_t j = 0; j < m; ++j) {
      s[j] = 0;
      for (size_t c = 0; c < d; ++c) s[j] += q[c] * k[j * d + c];
      top = std::fmax(top, s[j] *= scale);
    }
    for (size_t j = 0; j < m; ++j) sum += s[j] = std::exp(s[j] - top);
    for (size_t j = 0; j < m; ++j)
      for (size_t c = 0; c < e; ++c) out[c] += s[j] / sum * v[j * e + c];
  }
}

int main(int, char** arguments) {
  const std::string folder = std::string(arguments[1]) + "/";
  std::ostringstream text;
  text << std::ifstream(folder + "case.json").rdbuf();
  const std::string about = text.str();
  auto says = [&](const char* words) { return about.find(words) != std::string::npos; };
  if (!says("\"op\": \"attention\"") || !says("\"kind\": \"forward\"")) end(77, "attention only");
  if (!says("\"dtype\": \"float32\"")) end(77, "float32 only");
  if (!says("\"options\": {}") || says("\"bias\"") || says("\"mask\"")) end(77, "no options");

  Array q = read(folder + "q.npy"), k = read(folder + "k.npy"), v = read(folder + "v.npy"), out;
  size_t axes = q.shape.size();
  if (axes < 2 || k.shape.size() < 2 || v.shape.size() < 2) end(65, "expected (..., n, d)");
  if (k.shape.size() != axes || v.shape.size() != axes) end(77, "leading axes do not broadcast");
  size_t n = q.shape[axes - 2], d = q.shape[axes - 1], m = k.shape[axes - 2], e = v.shape[axes - 1];
  if (k.shape[axes - 1] != d || v.shape[axes - 2] != m || d == 0) end(65, "shapes do not fit");
  size_t heads = 1;
  for (size_t a = 0; a + 2 < axes; heads *= q.shape[a++])
    if (q.shape[a] != k.shape[a] || q.shape[a] != v.shape[a]) end(77, "axes do not broadcast");
  out.shape = q.shape;
  out.shape[axes - 1] = e;
  out.data.assign(out.size(), 0);
  for (size_t h = 0; h < heads; ++h)
    attend(&q.data[h * n * d], &k.data[h * m * d], &v.data[h * m * e], &out.data[h * n * e], n, m,
           d, e, 1 / std::sqrt(float(d)));
  write(folder + "out.npy", out);
}
