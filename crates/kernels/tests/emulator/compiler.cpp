// NVRTC's functions that the backend calls: the text is compiled with g++ behind `thread.h` into a library, whose path is
// the "image" that the emulated driver loads.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <unistd.h>

struct Program {
    std::string source, image, log;
};

static std::string read(const std::string &path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

extern "C" {

int nvrtcCreateProgram(Program **program, const char *source, const char *, int, const char *const *,
                       const char *const *) {
    *program = new Program{source, "", ""};
    return 0;
}

int nvrtcDestroyProgram(Program **program) {
    delete *program;
    *program = nullptr;
    return 0;
}

int nvrtcGetNumSupportedArchs(int *count) {
    *count = 2;
    return 0;
}

int nvrtcGetSupportedArchs(int *architectures) {
    architectures[0] = 80;
    architectures[1] = 90;
    return 0;
}

int nvrtcCompileProgram(Program *program, int options, const char *const *) {
    if (options < 1) return 5;
    std::string text = program->source + "\n";
    const std::string before = "extern \"C\" __global__ void ";
    for (size_t at = program->source.find(before); at != std::string::npos; at = program->source.find(before, at)) {
        at += before.size();
        text += "LAUNCHER(" + program->source.substr(at, program->source.find('(', at) - at) + ")\n";
    }
    std::string base = std::string(FOLDER) + "/module-" + std::to_string(std::hash<std::string>()(text));
    program->image = base + ".so";
    if (access(program->image.c_str(), R_OK) == 0) return 0;
    // Under a name of its own first: other tests may compile the same text.
    static int counter;
    std::string own = base + "-" + std::to_string(getpid()) + "-" + std::to_string(__sync_fetch_and_add(&counter, 1));
    std::ofstream(own + ".cpp") << text;
    std::string command = std::string("g++ -std=c++17 -O2 -shared -fPIC -w -U_FORTIFY_SOURCE " ORDER " -include " HEADER) + " " + own +
                          ".cpp -o " + own + ".so 2> " + own + ".log";
    int status = system(command.c_str());
    program->log = read(own + ".log");
    if (status == 0) status = rename((own + ".so").c_str(), program->image.c_str());
    unlink((own + ".cpp").c_str());
    unlink((own + ".log").c_str());
    return status == 0 ? 0 : 6;
}

int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = program->log.size() + 1;
    return 0;
}

int nvrtcGetProgramLog(Program *program, char *log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return 0;
}

int nvrtcGetCUBINSize(Program *program, size_t *size) {
    *size = program->image.size() + 1;
    return 0;
}

int nvrtcGetCUBIN(Program *program, char *image) {
    memcpy(image, program->image.c_str(), program->image.size() + 1);
    return 0;
}

int nvrtcGetPTXSize(Program *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }

int nvrtcGetPTX(Program *program, char *image) { return nvrtcGetCUBIN(program, image); }

const char *nvrtcGetErrorString(int) { return "emulated NVRTC error"; }
}
